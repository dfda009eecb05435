//! Requests of both families, while something is done to the cluster or to an agent.

use anyhow::{Context, Result};
use sheave::cluster::Protocol::Tcp;

use crate::cluster::Service;
use crate::fabric::addresses::Family;
use crate::figures::Figures;
use crate::lab::Lab;
use crate::traffic::{Load, Request, await_each};

/// Those of the client to a Service, IPv4 first.
pub(super) struct BothLoads(pub(super) [Load; 2]);

impl BothLoads {
    pub(super) fn start(lab: &Lab, service: &Service) -> Result<Self> {
        Self::of(lab, service, |request| request)
    }

    /// The same, each request as one likes.
    pub(super) fn of(
        lab: &Lab,
        service: &Service,
        as_one_likes: impl Fn(Request) -> Request,
    ) -> Result<Self> {
        let [v4, v6] = Family::BOTH.map(|family| {
            let request = as_one_likes(Request::new(Tcp, service.vip(family), 80));
            Load::of(&lab.fabric.client, request, 2)
        });
        Ok(Self([v4?, v6?]))
    }

    /// Waits until `count` more of each have been answered.
    pub(super) fn await_answers(&self, count: u64) -> Result<()> {
        await_each(&self.0, count)
    }

    /// Stops the agent of a node, then kills it: there are answers while it is away, and after it `is_back`.
    pub(super) fn outlast_restarts(
        &self,
        lab: &mut Lab,
        node: &str,
        mut is_back: impl FnMut(&mut Lab) -> Result<()>,
    ) -> Result<()> {
        for kill in [false, true] {
            if kill {
                lab.kill_agent(node)?;
            } else {
                lab.stop_agent(node)?;
            }
            self.await_answers(30)?;
            lab.start_agent(node)?;
            is_back(lab)?;
            self.await_answers(60)?;
        }
        Ok(())
    }

    /// Ends them; an error if one ever failed.
    pub(super) fn none_failed(self) -> Result<()> {
        self.measured(&mut Figures::default())
    }

    /// The same, and adds what they counted.
    pub(super) fn measured(self, figures: &mut Figures) -> Result<()> {
        let [v4, v6] = self.0.map(Load::stop);
        let reports = [v4?, v6?];
        reports.iter().for_each(|report| figures.count(report));
        reports
            .iter()
            .zip(Family::BOTH)
            .try_for_each(|(report, family)| report.ensure_none_failed().with_context(|| family.to_string()))
    }
}
