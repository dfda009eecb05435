//! The network between client and server: whether anything gets through, and how connections end.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether the server can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// It can.
    #[default]
    Up,
    /// It has vanished without a word: connections stay open, and nothing moves on them.
    Silent,
    /// Connections were reset, and new ones are refused.
    Refused,
}

/// What connections look at while they are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    pub reach: Reach,
    /// Connections that were begun at an earlier count are to end.
    pub cuts: u64,
    /// Whether they end with a RST.
    pub reset: bool,
}

/// A connection, as far as an answer can act on it.
#[derive(Clone)]
pub(crate) struct Connection {
    reset: Arc<dyn Fn() + Send + Sync>,
}

impl Connection {
    /// One whose close becomes a RST when `reset` was called.
    pub fn new(reset: impl Fn() + Send + Sync + 'static) -> Self {
        Self { reset: Arc::new(reset) }
    }

    /// Lets the close of this connection be a RST.
    pub fn reset_when_closed(&self) {
        (self.reset)();
    }
}

/// Runs `serve` as the network allows: not at all while it is silent, and no further than to a cut.
pub(crate) async fn while_connected(
    mut network: watch::Receiver<Network>,
    connection: &Connection,
    serve: impl Future<Output = ()>,
) {
    let begun = network.borrow_and_update().cuts;
    let mut serve = std::pin::pin!(serve);
    loop {
        let now = *network.borrow_and_update();
        if now.cuts != begun || now.reach == Reach::Refused {
            if now.reset || now.reach == Reach::Refused {
                connection.reset_when_closed();
            }
            return;
        }
        tokio::select! {
            // What is told after the network went silent must not get out.
            biased;
            changed = network.changed() => if changed.is_err() { return },
            () = &mut serve, if now.reach == Reach::Up => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_network_stops_everything_and_a_cut_ends_it() {
        let (sender, network) = watch::channel(Network::default());
        let (ticks, resets) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (ticking, resetting) = (ticks.clone(), resets.clone());
        let task = tokio::spawn(async move {
            let connection = Connection::new(move || {
                resetting.fetch_add(1, Ordering::Relaxed);
            });
            let serve = async {
                loop {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    ticking.fetch_add(1, Ordering::Relaxed);
                }
            };
            while_connected(network, &connection, serve).await;
        });
        tokio::time::sleep(Duration::from_millis(3500)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 3);
        sender.send_modify(|network| network.reach = Reach::Silent);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 3);
        sender.send_modify(|network| network.reach = Reach::Up);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(ticks.load(Ordering::Relaxed) > 3);
        sender.send_modify(|network| *network = Network { cuts: 1, reset: true, ..*network });
        task.await.unwrap();
        assert_eq!(resets.load(Ordering::Relaxed), 1);
    }
}
