//! An [`Api`] on the network: TLS over TCP, on a thread of its own.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};

use crate::api::{Api, Options};
use crate::connection::{Connection, Network, Reach};
use crate::serve;
use crate::tls::Identity;

/// How often the address is tried again when something else has it.
const BIND_AGAIN: Duration = Duration::from_millis(50);

/// Makes the listening socket, and makes it again when the server comes back.
///
/// It is called on threads of any kind: one that wants a network namespace enters it in a thread of its own.
pub type Bind = Box<dyn Fn() -> io::Result<TcpListener> + Send>;

/// An API server on the network. Ends when dropped.
pub struct Server {
    api: Api,
    address: SocketAddr,
    ca: String,
    token: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// On a free port of the loopback address.
    pub fn start(options: Options) -> Result<Self> {
        Self::listen(options, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// On that address; port 0 is a free one, which it keeps.
    pub fn listen(options: Options, address: SocketAddr) -> Result<Self> {
        let first = TcpListener::bind(address).with_context(|| format!("bind({address})"))?;
        let address = first.local_addr()?;
        Self::with_listener(options, first, address, Box::new(move || TcpListener::bind(address)))
    }

    /// On what `bind` makes.
    pub fn bind(options: Options, bind: Bind) -> Result<Self> {
        let first = bind().context("cannot make the listening socket")?;
        let address = first.local_addr()?;
        Self::with_listener(options, first, address, bind)
    }

    fn with_listener(options: Options, first: TcpListener, address: SocketAddr, bind: Bind) -> Result<Self> {
        let token = options.token.clone();
        let api = Api::new(options);
        let identity = Arc::new(Identity::new(&[address.ip()])?);
        let ca = identity.ca.clone();
        let (stop, stopped) = oneshot::channel();
        let served = api.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("apiserver".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(&served, &identity, first, bind) => {}
                        // Dropped is as good as told.
                        _ = stopped => {}
                    }
                });
            })
            .context("cannot start a thread")?;
        Ok(Self { api, address, ca, token, stop: Some(stop), thread: Some(thread) })
    }

    /// What it serves.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate that clients check it with, in PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// A kubeconfig with everything in it.
    pub fn kubeconfig(&self) -> String {
        let (address, token) = (self.address, &self.token);
        let ca = STANDARD.encode(&self.ca);
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: double\n  \
               cluster:\n    \
                 server: https://{address}\n    \
                 certificate-authority-data: {ca}\n\
             users:\n\
             - name: sheave\n  \
               user:\n    \
                 token: {token}\n\
             contexts:\n\
             - name: double\n  \
               context:\n    \
                 cluster: double\n    \
                 user: sheave\n\
             current-context: double\n"
        )
    }

    /// Writes the files of a service account into a directory, as a pod has them: `token`, `ca.crt`, `namespace`.
    /// A token that is there already is replaced at once.
    pub fn write_service_account(&self, directory: &Path, token: &str) -> Result<()> {
        for (name, text) in [("token", token), ("ca.crt", &self.ca), ("namespace", "kube-system")] {
            let (new, path) = (directory.join(format!(".{name}")), directory.join(name));
            fs::write(&new, text).with_context(|| format!("write({})", new.display()))?;
            fs::rename(&new, &path).with_context(|| format!("rename({})", path.display()))?;
        }
        Ok(())
    }

    /// Host and port as `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT` tell them.
    pub fn service_host(&self) -> (IpAddr, u16) {
        (self.address.ip(), self.address.port())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

async fn accept(api: &Api, identity: &Arc<Identity>, first: TcpListener, bind: Bind) {
    let mut network = api.shared.network.subscribe();
    let mut first = Some(first);
    loop {
        if network.wait_for(|network| network.reach != Reach::Refused).await.is_err() {
            return;
        }
        let listener = match first.take().map_or_else(&bind, Ok).and_then(listener) {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("the API server double cannot listen: {error}");
                tokio::time::sleep(BIND_AGAIN).await;
                continue;
            }
        };
        accept_until_refused(api, identity, &listener, &mut network).await;
    }
}

fn listener(socket: TcpListener) -> io::Result<tokio::net::TcpListener> {
    socket.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(socket)
}

async fn accept_until_refused(
    api: &Api,
    identity: &Arc<Identity>,
    listener: &tokio::net::TcpListener,
    network: &mut watch::Receiver<Network>,
) {
    loop {
        let reach = network.borrow_and_update().reach;
        if reach == Reach::Refused {
            return;
        }
        tokio::select! {
            accepted = listener.accept(), if reach == Reach::Up => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(serve(api.clone(), identity.clone(), stream))),
                Err(error) => {
                    eprintln!("the API server double cannot accept: {error}");
                    tokio::time::sleep(BIND_AGAIN).await;
                }
            },
            changed = network.changed() => if changed.is_err() { return },
        }
    }
}

async fn serve(api: Api, identity: Arc<Identity>, stream: TcpStream) {
    if let Err(error) = serve_tls(&api, &identity, stream).await {
        eprintln!("the API server double has lost a connection: {error:#}");
    }
}

async fn serve_tls(api: &Api, identity: &Identity, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    let handle = stream.try_clone()?;
    let connection = Connection::new(move || {
        // A socket that is gone needs no RST.
        let _ = SockRef::from(&handle).set_linger(Some(Duration::ZERO));
    });
    let stream = TcpStream::from_std(stream)?;
    let network = api.shared.network.subscribe();
    let served = async {
        // A client that goes away or does not trust us is not our business.
        if let Ok(stream) = identity.acceptor.accept(stream).await {
            serve::connection(&api.shared, stream, connection.clone()).await;
        }
    };
    crate::connection::while_connected(network, &connection, served).await;
    Ok(())
}
