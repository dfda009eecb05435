//! The way out: what is announced, as routes in a table that the node's own routing daemon announces.
//!
//! They are routes to the loopback device, as Coil's are: BIRD learns and FRR imports such routes, and announces them with the node as
//! next hop. Nothing is forwarded by them: that is the dataplane's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rtnetlink::Handle;
use tracing::{info, warn};

use crate::dataplane::error::RouteError;
use crate::dataplane::routing::{self, Route};
use crate::dataplane::tunnel;

/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// The table, and what an agent before left in others.
pub struct ExportTable {
    handle: Handle,
    /// `None`: nothing is written; what an agent before wrote goes.
    table: Option<u32>,
    /// As the kernel holds them, as far as is known.
    held: BTreeMap<(u32, IpNet), Route>,
    /// What is announced.
    wanted: BTreeSet<IpNet>,
    /// All that is to be announced at the start is in `wanted`: what is held besides is of an agent before.
    complete: bool,
    /// Why something is not as it should be.
    problem: Option<String>,
    again: Option<Instant>,
}

impl ExportTable {
    /// Connects to the kernel; changes nothing. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// When there is no rtnetlink socket to be had.
    pub fn open(table: Option<u32>) -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            table,
            held: BTreeMap::new(),
            wanted: BTreeSet::new(),
            complete: false,
            problem: None,
            // Nothing is known yet.
            again: Some(Instant::now()),
        })
    }

    /// Whether there is a table to write to.
    pub fn is_wanted(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the table has a route to that prefix.
    pub fn holds(&self, prefix: &IpNet) -> bool {
        self.table.is_some_and(|table| self.held.contains_key(&(table, *prefix)))
    }

    /// Why something is not in the table, or still there.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Has the table say that these are announced from now on, and those no more.
    pub async fn change(
        &mut self,
        announce: impl IntoIterator<Item = IpNet>,
        withdraw: impl IntoIterator<Item = IpNet>,
    ) {
        let announce: Vec<IpNet> = announce.into_iter().collect();
        let withdraw: Vec<IpNet> = withdraw.into_iter().collect();
        self.wanted.extend(&announce);
        for prefix in &withdraw {
            self.wanted.remove(prefix);
        }
        if self.again.is_some() {
            // Whether the kernel holds what is believed is not known: all of it is looked at.
            return self.sync().await;
        }
        let Some(table) = self.table else { return };
        let result = self.write(table, &announce, &withdraw).await;
        self.note(result);
    }

    async fn write(&mut self, table: u32, announce: &[IpNet], withdraw: &[IpNet]) -> Result<(), RouteError> {
        // What comes may take the place of what goes. One that the table does not take is no matter of the others.
        let mut result = Ok(());
        if !announce.is_empty() {
            match self.route(table).await {
                Ok(route) => result = self.put_all(announce, route).await,
                Err(error) => result = Err(error),
            }
        }
        for prefix in withdraw {
            result = result.and(self.delete((table, *prefix)).await);
        }
        result
    }

    /// All that is to be announced at the start is: what else an agent before left goes.
    pub async fn complete(&mut self) {
        self.complete = true;
        self.sync().await;
    }

    /// Tries again what failed, once it is time.
    pub async fn tick(&mut self, now: Instant) {
        if self.again.is_some_and(|again| again <= now) {
            self.sync().await;
        }
    }

    /// Lists our routes and makes them what they should be.
    pub async fn sync(&mut self) {
        let result = self.repair().await;
        self.note(result);
    }

    fn note(&mut self, result: Result<(), RouteError>) {
        let problem = result.err().map(|error| match self.table {
            Some(table) => format!("announce.exportTable {table}: {error}"),
            None => format!("routes that an agent before exported: {error}"),
        });
        self.again = problem.is_some().then(|| Instant::now() + AGAIN);
        if let Some(problem) = problem.as_ref().filter(|problem| self.problem.as_ref() != Some(problem)) {
            warn!("{problem}");
        }
        self.problem = problem;
    }

    async fn repair(&mut self) -> Result<(), RouteError> {
        let all = routing::list_all(&self.handle).await?.into_iter();
        let exported = all.filter(|(_, route)| !routing::forwards(route.table));
        self.held = exported.map(|(prefix, route)| ((route.table, prefix), route)).collect();
        let mut result = Ok(());
        if self.complete {
            let unwanted =
                |(table, prefix): &(u32, IpNet)| Some(*table) != self.table || !self.wanted.contains(prefix);
            let gone: Vec<(u32, IpNet)> = self.held.keys().copied().filter(unwanted).collect();
            for key in &gone {
                result = result.and(self.delete(*key).await);
            }
            if !gone.is_empty() {
                info!(routes = gone.len(), "removed exported routes that are announced no more");
            }
        }
        let Some(table) = self.table.filter(|_| !self.wanted.is_empty()) else { return result };
        let route = self.route(table).await?;
        let missing: Vec<IpNet> = self
            .wanted
            .iter()
            .copied()
            .filter(|prefix| self.held.get(&(table, *prefix)) != Some(&route))
            .collect();
        result.and(self.put_all(&missing, route).await)
    }

    async fn route(&self, table: u32) -> Result<Route, RouteError> {
        let loopback = tunnel::find(&self.handle, "lo").await?;
        let loopback = loopback.ok_or_else(|| RouteError::new("lo".into(), "there is no loopback device"))?;
        Ok(Route::through(loopback.header.index, table))
    }

    async fn put_all(&mut self, prefixes: &[IpNet], route: Route) -> Result<(), RouteError> {
        let mut result = Ok(());
        for prefix in prefixes {
            result = result.and(self.put(*prefix, route).await);
        }
        result
    }

    async fn put(&mut self, prefix: IpNet, route: Route) -> Result<(), RouteError> {
        let key = (route.table, prefix);
        routing::put(&self.handle, prefix, &route, self.held.contains_key(&key)).await?;
        self.held.insert(key, route);
        Ok(())
    }

    async fn delete(&mut self, key: (u32, IpNet)) -> Result<(), RouteError> {
        if let Some(route) = self.held.remove(&key) {
            routing::delete(&self.handle, key.1, &route).await?;
        }
        Ok(())
    }
}
