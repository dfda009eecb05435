//! How to reach the API server, and as whom.

use std::env::{self, VarError};
use std::error::Error;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderValue, USER_AGENT};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, KubeconfigError, NamedAuthInfo, NamedCluster,
    NamedContext,
};
use kube::{Client, Config};
use serde::de::IgnoredAny;
use tower::ServiceBuilder;
use tracing::info;

use super::token::WithToken;
use crate::yaml;

const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";
const KUBECONFIG: &str = "KUBECONFIG";
/// Where the kubelet puts a Pod's credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection that is silent for that long is asked whether it still lives,
const KEEPALIVE: Duration = Duration::from_secs(15);
/// and again in this interval,
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// that often: after 30 s it is dead.
const KEEPALIVE_RETRIES: u32 = 3;
/// The same for what was sent and is not acknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why it is not known how to reach the API server. Never holds a credential.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing says where it is.
    #[error(
        "no API server is known: this is no Pod ({HOST} is not set), and neither ${KUBECONFIG} nor ~/.kube/config is \
         there; give --kubeconfig FILE, or --manifests DIR to do without a cluster"
    )]
    Unknown,
    /// An environment variable.
    #[error("environment variable {name}: {problem}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// What is wrong with it, and what is expected.
        problem: String,
    },
    /// A file that is needed.
    #[error("{}: {problem}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// What the configuration as a whole leads to.
    #[error("no client for {server}: {problem}")]
    Client {
        /// The API server's URL.
        server: String,
        /// What is wrong.
        problem: String,
    },
}

/// Makes a client from a kubeconfig; without one, from the Pod's service account; and outside of a Pod, from
/// `$KUBECONFIG` or `~/.kube/config`.
///
/// In a Pod, `KUBERNETES_SERVICE_HOST` (a name or address) and `KUBERNETES_SERVICE_PORT` tell where the API server is. The
/// kubelet sets them to the `kubernetes` Service's cluster IP, which this program is what makes reachable: its DaemonSet
/// has to override them with an address that works without it, as kube-proxy's kubeconfig has one. A kubeconfig's
/// `proxy-url` is refused and `HTTPS_PROXY` is not heeded.
///
/// Only reads configuration; the server need not be up. The token's file is read again for each request, the Pod's CA
/// every minute.
///
/// # Errors
/// [`ConnectError`], with the file or variable and what to do.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let config = match kubeconfig {
        Some(path) => from_files(&[path.to_owned()]).await?,
        None => match variable(HOST)? {
            Some(host) => {
                let port = variable(PORT)?.ok_or_else(|| ConnectError::Variable {
                    name: PORT,
                    problem: format!(
                        "is not set, but {HOST} is: set both, the port is 443 or 6443 as a rule"
                    ),
                })?;
                in_cluster(server(&host, &port)?, Path::new(SERVICE_ACCOUNT)).await?
            }
            None => from_files(&usual_files()?).await?,
        },
    };
    info!(server = %config.cluster_url, "API server");
    client(config)
}

fn variable(name: &'static str) -> Result<Option<String>, ConnectError> {
    match env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => {
            Err(ConnectError::Variable { name, problem: "is not UTF-8".to_owned() })
        }
    }
}

/// The URL of what the variables name.
pub(super) fn server(host: &str, port: &str) -> Result<Uri, ConnectError> {
    let port: u16 = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| ConnectError::Variable {
        name: PORT,
        problem: format!("`{port}` is not a port: expected 1 to 65535"),
    })?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let url = match bare.parse() {
        Ok(IpAddr::V6(address)) => format!("https://[{address}]:{port}"),
        Ok(IpAddr::V4(_)) | Err(_) => format!("https://{host}:{port}"),
    };
    let problem = || ConnectError::Variable {
        name: HOST,
        problem: format!("`{host}` is not a host: expected a name or an address, without https:// and port"),
    };
    let uri: Uri = url.parse().map_err(|_| problem())?;
    let only_host = !host.contains(['/', '@', '?', '#']) && uri.port_u16() == Some(port);
    if only_host { Ok(uri) } else { Err(problem()) }
}

/// A Pod's credentials, as a kubeconfig would name them.
pub(super) async fn in_cluster(server: Uri, account: &Path) -> Result<Config, ConnectError> {
    let (ca, token) = (account.join("ca.crt"), account.join("token"));
    for path in [&ca, &token] {
        if let Err(error) = std::fs::metadata(path) {
            let problem = format!(
                "{error}: a Pod has it unless automountServiceAccountToken is false; or give --kubeconfig"
            );
            return Err(ConnectError::File { path: path.clone(), problem });
        }
    }
    let text = |path: &Path| Some(path.to_string_lossy().into_owned());
    let name = || "in-cluster".to_owned();
    let kubeconfig = Kubeconfig {
        clusters: vec![NamedCluster {
            name: name(),
            cluster: Some(Cluster {
                server: Some(server.to_string()),
                certificate_authority: text(&ca),
                ..Cluster::default()
            }),
            ..NamedCluster::default()
        }],
        auth_infos: vec![NamedAuthInfo {
            name: name(),
            auth_info: Some(AuthInfo { token_file: text(&token), ..AuthInfo::default() }),
            ..NamedAuthInfo::default()
        }],
        contexts: vec![NamedContext {
            name: name(),
            context: Some(Context { cluster: name(), user: Some(name()), ..Context::default() }),
            ..NamedContext::default()
        }],
        current_context: Some(name()),
        ..Kubeconfig::default()
    };
    let mut config = resolve(kubeconfig, &ca).await?;
    // Read again now and then, since it is replaced like the token.
    config.root_cert_file = Some(ca);
    Ok(config)
}

/// `$KUBECONFIG`, which may list several, or `~/.kube/config`.
fn usual_files() -> Result<Vec<PathBuf>, ConnectError> {
    if let Some(list) = env::var_os(KUBECONFIG).filter(|list| !list.is_empty()) {
        return Ok(env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect());
    }
    let file = env::home_dir().map(|home| home.join(".kube/config")).filter(|file| file.exists());
    file.map(|file| vec![file]).ok_or(ConnectError::Unknown)
}

async fn from_files(paths: &[PathBuf]) -> Result<Config, ConnectError> {
    let mut whole: Option<(Kubeconfig, &PathBuf)> = None;
    for path in paths {
        let next = Kubeconfig::read_from(path).map_err(|error| unreadable(path, &error))?;
        whole = Some(match whole {
            None => (next, path),
            Some((before, first)) => (before.merge(next).map_err(|error| unreadable(path, &error))?, first),
        });
    }
    let (kubeconfig, path) = whole.ok_or(ConnectError::Unknown)?;
    resolve(kubeconfig, path).await
}

/// What the current context says.
async fn resolve(kubeconfig: Kubeconfig, path: &Path) -> Result<Config, ConnectError> {
    let file = |problem: String| ConnectError::File { path: path.to_owned(), problem };
    let context =
        kubeconfig.current_context.clone().filter(|context| !context.is_empty()).ok_or_else(|| {
            file("current-context is not set: `kubectl config use-context NAME` sets it".to_owned())
        })?;
    let named = kubeconfig.contexts.iter().find(|named| named.name == context);
    let cluster = named.and_then(|named| named.context.as_ref()).map(|context| &context.cluster);
    let cluster = kubeconfig.clusters.iter().find(|named| Some(&named.name) == cluster);
    let proxy = cluster.and_then(|named| named.cluster.as_ref()?.proxy_url.as_ref());
    if proxy.is_some_and(|url| !url.is_empty()) {
        return Err(file(
            "proxy-url of the cluster is not supported: give a server that is reached directly".into(),
        ));
    }
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| unreadable(path, &error))?;
    // Of the environment: what leads out of the cluster is not the way to its own API server.
    config.proxy_url = None;
    Ok(config)
}

/// Of YAML that is wrong only the place is told: the value there may be a token.
fn unreadable(path: &Path, error: &KubeconfigError) -> ConnectError {
    let problem = match error {
        KubeconfigError::Parse(error) => {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let place = yaml::read(&text, PhantomData::<IgnoredAny>).err().and_then(|error| error.line);
            let line = place.or_else(|| error.location().map(|place| place.line()));
            let line = line.map(|line| format!(" in line {line}")).unwrap_or_default();
            format!("is not a kubeconfig: what is{line} is not of the form that belongs there")
        }
        KubeconfigError::ReadConfig(error, _) => {
            format!("{error}: is the path right, may this user read it?")
        }
        error => error.to_string(),
    };
    ConnectError::File { path: path.to_owned(), problem }
}

/// The client, with connections that notice when the other side is gone.
pub(super) fn client(mut config: Config) -> Result<Client, ConnectError> {
    let server = config.cluster_url.to_string();
    let failed =
        |error: &dyn Error| ConnectError::Client { server: server.clone(), problem: error.to_string() };

    let auth = &mut config.auth_info;
    let token_file = auth.token_file.take();
    // As kubectl has it, a file comes after what is given in place, and before a plugin.
    let token_file = token_file
        .filter(|_| auth.token.is_none() && auth.username.is_none() && auth.auth_provider.is_none());
    if token_file.is_some() {
        auth.exec = None;
    }
    config
        .headers
        .push((USER_AGENT, HeaderValue::from_static(concat!("sheave/", env!("CARGO_PKG_VERSION")))));

    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let https = config.rustls_https_connector_with_connector(tcp).map_err(|error| failed(&error))?;
    let http = legacy::Client::builder(TokioExecutor::new()).build(https);

    let http =
        WithToken::new(http, token_file.as_ref().map(PathBuf::from)).map_err(|error| ConnectError::File {
            path: token_file.unwrap_or_default().into(),
            problem: format!("the token's file {error}"),
        })?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(config.extra_headers_layer().map_err(|error| failed(&error))?)
        .option_layer(config.auth_layer().map_err(|error| failed(&error))?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
