//! The end: everything of ours goes from the kernel.

use super::error::DataplaneError;
use super::sysctl::Sysctls;
use super::tunnel::{self, Tunnel};
use super::virtual_servers::VirtualServers;
use super::{Lock, Settings, fou, netfilter, pods, routing, words};

/// Removes everything of ours from the kernel, nothing else. Gives what it removed, in words. `_lock` is that of the
/// state directory: no agent puts anything back.
///
/// # Errors
/// [`DataplaneError`] of the first part that failed; the others are removed all the same.
pub async fn cleanup(settings: &Settings, _lock: &Lock) -> Result<Vec<String>, DataplaneError> {
    let (connection, handle, _) =
        rtnetlink::new_connection_with_strict_check().map_err(DataplaneError::Rtnetlink)?;
    tokio::spawn(connection);
    let mut done = Vec::new();
    let mut failed: Option<DataplaneError> = None;
    let mut note = |result: Result<Vec<String>, DataplaneError>| match result {
        Ok(words) => done.extend(words),
        Err(error) => drop(failed.get_or_insert(error)),
    };
    // A kernel without IPVS holds no virtual server of ours.
    if let Ok(mut servers) = VirtualServers::open() {
        note(servers.clear().map(|count| words(count, "virtual servers")).map_err(Into::into));
    }
    note(routing::clear(&handle).await.map(|count| words(count, "routes")).map_err(Into::into));
    note(
        netfilter::remove()
            .map(|existed| if existed { vec!["table inet sheave".into()] } else { Vec::new() })
            .map_err(Into::into),
    );
    note(fou::remove().map(|count| words(count, "GUE ports")).map_err(Into::into));
    let cleared = pods::cleanup(&settings.state_directory).await;
    note(cleared.map(|count| words(count, "tunnels in pods")).map_err(Into::into));
    // Before the devices, whose settings go with them.
    let restored = Sysctls::open(&settings.state_directory).and_then(Sysctls::restore);
    note(restored.map(|count| words(count, "sysctls put back")).map_err(Into::into));
    for tunnel in Tunnel::ALL {
        let removed = tunnel::remove(&handle, tunnel, tunnel.local()).await;
        note(
            removed
                .map(|existed| if existed { vec![tunnel.name().into()] } else { Vec::new() })
                .map_err(Into::into),
        );
    }
    failed.map_or(Ok(done), Err)
}
