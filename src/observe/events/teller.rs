//! Which of the agents tells what all of them see.
//!
//! Every agent plans every Service and sees the same conflict or wrong annotation. The one with the highest hash of
//! (object, node) tells (rendezvous hashing): agents agree without talking, the load is spread, and when a node
//! goes, only what it told moves on. While their views differ, two may tell: the Event has the same name then, and the
//! API server takes the first.

use super::hash;
use crate::cluster::ObjectKey;

/// Whether this node's agent is the one to tell about `object`, of those `agents` (this node's own may be missing).
///
/// About a Node with an agent, that agent tells.
pub(super) fn tells<'a>(
    own: &str,
    object: &ObjectKey,
    agents: impl Iterator<Item = &'a str> + Clone,
) -> bool {
    if let ObjectKey::Node(node) = object
        && (**node == *own || agents.clone().any(|agent| *agent == **node))
    {
        return **node == *own;
    }
    let name = object.to_string();
    let rank = |node: &str| hash::of([name.as_str(), node]);
    let mine = (rank(own), own);
    agents.filter(|agent| *agent != own).all(|agent| (rank(agent), agent) < mine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::ServiceName;

    fn service(number: usize) -> ObjectKey {
        ObjectKey::Service(ServiceName { namespace: "shop".into(), name: format!("web-{number}").into() })
    }

    fn tellers<'a>(object: &ObjectKey, nodes: &[&'a str]) -> Vec<&'a str> {
        nodes.iter().copied().filter(|own| tells(own, object, nodes.iter().copied())).collect()
    }

    #[test]
    fn exactly_one_tells_and_the_load_is_spread() {
        let nodes = ["node-a", "node-b", "node-c"];
        let mut told = [0; 3];
        for number in 0..300 {
            let tellers = tellers(&service(number), &nodes);
            let [teller] = tellers[..] else { panic!("{tellers:?} tell about web-{number}") };
            told[nodes.iter().position(|node| *node == teller).unwrap()] += 1;
        }
        assert!(told.iter().all(|count| *count > 70), "{told:?}");
    }

    #[test]
    fn a_node_that_goes_moves_only_what_it_told() {
        for number in 0..100 {
            let before = tellers(&service(number), &["node-a", "node-b", "node-c"]);
            let after = tellers(&service(number), &["node-a", "node-c"]);
            assert!(before == ["node-b"] || before == after, "web-{number}: {before:?}, then {after:?}");
        }
    }

    #[test]
    fn own_node_counts_before_its_annotation_is_there() {
        assert!(tells("node-a", &service(1), std::iter::empty()));
        let with_others = |own| tells(own, &service(1), ["node-b", "node-c"].into_iter());
        assert_eq!(
            with_others("node-a"),
            tells("node-a", &service(1), ["node-a", "node-b", "node-c"].into_iter())
        );
    }

    #[test]
    fn a_node_with_an_agent_speaks_for_itself() {
        let nodes = ["node-a", "node-b", "node-c"];
        assert_eq!(tellers(&ObjectKey::Node("node-b".into()), &nodes), ["node-b"]);
        assert!(tells("node-z", &ObjectKey::Node("node-z".into()), nodes.into_iter()));
        // Nobody is there to speak for this one: one of the others does.
        assert_eq!(tellers(&ObjectKey::Node("node-without-agent".into()), &nodes).len(), 1);
    }
}
