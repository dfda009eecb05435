//! How sessions begin and end.

use std::time::Duration;

use sheave_bgp::session::State;
use sheave_bgp::wire::ShutdownMessage;
use sheave_bgp::{PeerConfig, Shutdown, Speaker};

use crate::lab::Lab;
use crate::{BIRD_ASN, OUR_ASN, in_lab, only_peer, peer_config, speaker_config, until};

/// BIRD's operator is told why (RFC 9003).
#[test]
fn why_we_leave() {
    in_lab(|mut lab| async move {
        let [ours, birds] = Lab::V4;
        lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, "passive on;");
        let speaker = Speaker::start(speaker_config(None)).await.unwrap();
        speaker.set_peers(vec![peer_config(birds, BIRD_ASN)]);
        until("a session", || only_peer(&speaker).state == State::Established).await;
        let message = ShutdownMessage::new("rack 7 is moved, até amanhã").unwrap();
        speaker.shutdown(Shutdown::CeaseSaying(message)).await;
        lab.wait_for("show protocols all peer", &["Administrative shutdown"]).await;
        lab.wait_for_log("rack 7 is moved, até amanhã").await;
    });
}

/// BIRD's OPEN comes first, whoever connects.
#[test]
fn open_is_delayed() {
    for passive in [false, true] {
        in_lab(move |mut lab| async move {
            let [ours, birds] = Lab::V4;
            lab.start_bird(birds, BIRD_ASN, ours, OUR_ASN, if passive { "" } else { "passive on;" });
            let speaker = Speaker::start(speaker_config(passive.then_some(ours))).await.unwrap();
            // Longer than the test waits.
            let delay_open = Some(Duration::from_secs(120));
            speaker.set_peers(vec![PeerConfig { passive, delay_open, ..peer_config(birds, BIRD_ASN) }]);
            until("a session", || only_peer(&speaker).state == State::Established).await;
            speaker.shutdown(Shutdown::Cease).await;
        });
    }
}
