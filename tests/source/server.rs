//! What becomes of the server as a whole: away, silent, with another token, without a resource.

use std::time::Duration;

use sheave::cluster::WatchState;
use sheave::cluster::kubernetes::{Pace, connect, follow};
use sheave_apiserver::{Reach, Resource};
use tokio::sync::mpsc;

use crate::lab::{Heard, Lab, pace};

#[tokio::test]
async fn away_at_the_start() {
    let mut lab = Lab::new();
    lab.api().set_reach(Reach::Refused);
    lab.follow().await;
    lab.until("all down", |heard| {
        heard.states.len() == 4 && heard.states.keys().all(|name| heard.is_down(name))
    })
    .await;
    assert!(!lab.heard.synced);
    lab.api().set_reach(Reach::Up);
    lab.until("synced", |heard| heard.synced && heard.is_watching()).await;
    lab.hears_changes().await;
}

#[tokio::test]
async fn away_and_back_with_a_truncated_history() {
    let mut lab = Lab::synced().await;
    lab.api().set_reach(Reach::Refused);
    lab.until("all down", |heard| heard.states.keys().all(|name| heard.is_down(name))).await;
    assert!(
        lab.heard.errors.iter().any(|error| error.contains("Connection refused")),
        "{:?}",
        lab.heard.errors
    );
    lab.change();
    lab.api().compact();
    let address = lab.change();
    lab.api().set_reach(Reach::Up);
    lab.until("changed", |heard| heard.endpoints() == [address.as_str()] && heard.is_watching()).await;
    assert_eq!(lab.heard.deleted, []);
}

#[tokio::test]
async fn silent_without_a_close() {
    let mut lab = Lab::new();
    lab.pace = Pace { watch: Duration::from_secs(1), ..pace() };
    lab.follow().await;
    lab.until("synced", |heard| heard.synced && heard.is_watching()).await;
    lab.api().set_reach(Reach::Silent);
    lab.until("all down", |heard| heard.states.keys().all(|name| heard.is_down(name))).await;
    assert_eq!(lab.heard.endpoints(), ["10.0.0.1"]);
    let address = lab.change();
    lab.api().set_reach(Reach::Up);
    lab.until("changed", |heard| heard.endpoints() == [address.as_str()] && heard.is_watching()).await;
    assert_eq!(lab.heard.deleted, []);
}

#[tokio::test]
async fn a_rotated_token() {
    let mut lab = Lab::synced().await;
    lab.api().revoke_token("token-0");
    lab.api().add_token("token-1");
    lab.api().cut(false);
    lab.until("all down", |heard| heard.states.keys().all(|name| heard.is_down(name))).await;
    assert!(lab.heard.errors.iter().all(|error| error.contains("401")), "{:?}", lab.heard.errors);
    lab.server.write_service_account(lab.directory.path(), "token-1").unwrap();
    lab.until("heard again", Heard::is_watching).await;
    lab.hears_changes().await;
    assert_eq!(lab.heard.deleted, []);
}

#[tokio::test]
async fn forbidden_until_the_role_is_mended() {
    let mut lab = Lab::new();
    for verb in ["list", "watch"] {
        lab.api().set_forbidden(verb, "nodes", true);
    }
    lab.follow().await;
    lab.until("down", |heard| heard.is_down("nodes") && heard.is("services", &WatchState::Watching)).await;
    assert!(!lab.heard.synced);
    assert!(lab.heard.errors[0].contains("cannot watch resource \"nodes\""), "{:?}", lab.heard.errors);
    for verb in ["list", "watch"] {
        lab.api().set_forbidden(verb, "nodes", false);
    }
    lab.until("synced", |heard| heard.synced && heard.is_watching()).await;
}

#[tokio::test]
async fn without_service_cidrs_until_they_are_served_and_not_any_more() {
    let mut lab = Lab::new();
    lab.api().set_served(Resource::ServiceCidrs, false);
    lab.follow().await;
    lab.until("synced", |heard| heard.synced && heard.is("servicecidrs", &WatchState::NotServed)).await;
    assert_eq!(lab.heard.index.service_cidrs().count(), 0);
    lab.api().set_served(Resource::ServiceCidrs, true);
    lab.until("served", |heard| heard.is("servicecidrs", &WatchState::Watching)).await;
    assert_eq!(lab.heard.index.service_cidrs().count(), 1);
    lab.api().set_served(Resource::ServiceCidrs, false);
    lab.api().cut(false);
    lab.until("down", |heard| heard.is_down("servicecidrs")).await;
    assert_eq!(lab.heard.index.service_cidrs().count(), 1, "a 404 takes nothing away");
}

#[tokio::test]
async fn without_service_cidrs_until_they_are_allowed_and_not_any_more() {
    let mut lab = Lab::new();
    let forbid = |lab: &Lab, forbidden| {
        for verb in ["list", "watch"] {
            lab.api().set_forbidden(verb, "servicecidrs", forbidden);
        }
    };
    forbid(&lab, true);
    lab.follow().await;
    lab.until("synced", |heard| heard.synced && heard.is_down("servicecidrs")).await;
    let told = lab.heard.errors.last().unwrap();
    assert!(
        told.contains(
            "does its ClusterRole allow list and watch? Until it does, all goes on without servicecidrs"
        ),
        "{told}"
    );
    forbid(&lab, false);
    lab.until("allowed", Heard::is_watching).await;
    assert_eq!(lab.heard.index.service_cidrs().count(), 1);
    forbid(&lab, true);
    lab.api().cut(false);
    lab.until("down", |heard| heard.is_down("servicecidrs")).await;
    assert_eq!(lab.heard.index.service_cidrs().count(), 1, "a 403 takes nothing away");
}

#[tokio::test]
async fn watches_that_end_in_order_cost_one_request_each_and_are_not_told() {
    let mut lab = Lab::new();
    lab.pace = Pace { watch: Duration::from_secs(1), ..pace() };
    lab.follow().await;
    lab.until("synced", |heard| heard.synced && heard.is_watching()).await;
    let begun = lab.count("watch", Resource::Nodes, 200);
    let told = lab.heard.states.clone();
    let twice = async {
        while lab.count("watch", Resource::Nodes, 200) < begun + 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), twice).await.expect("the watch is not begun again");
    lab.hears_changes().await;
    assert_eq!(lab.heard.states, told);
    assert_eq!(lab.heard.errors, [""; 0]);
    assert_eq!(lab.count("list", Resource::Nodes, 200), 0);
}

#[tokio::test]
async fn it_ends_when_nobody_listens() {
    let lab = Lab::new();
    for reach in [Reach::Up, Reach::Refused, Reach::Silent] {
        lab.api().set_reach(reach);
        let client = connect(Some(&lab.kubeconfig())).await.unwrap();
        let (events, receiver) = mpsc::unbounded_channel();
        let following = follow(&client, &lab.pace, events);
        drop(receiver);
        tokio::time::timeout(Duration::from_secs(10), following).await.expect("goes on").unwrap();
    }
}
