//! Where the API server is, and as whom it is talked to.

use std::convert::Infallible;
use std::path::Path;

use hyper::header::AUTHORIZATION;
use hyper::{Request, Response, StatusCode};
use kube::client::Body;
use sheave_apiserver::{Options, Server};
use tower::{Service as _, service_fn};

use crate::cluster::kubernetes::connect::{client, connect, in_cluster, server};
use crate::cluster::kubernetes::token::WithToken;

#[test]
fn server_of_the_environment() {
    let cases = [
        ("10.0.0.1", "6443", Ok("https://10.0.0.1:6443/")),
        ("fd00::1", "6443", Ok("https://[fd00::1]:6443/")),
        ("[fd00::1]", "443", Ok("https://[fd00::1]:443/")),
        ("api.example.org", "6443", Ok("https://api.example.org:6443/")),
        ("10.0.0.1", "0", Err("KUBERNETES_SERVICE_PORT")),
        ("10.0.0.1", "https", Err("KUBERNETES_SERVICE_PORT")),
        ("https://10.0.0.1", "6443", Err("KUBERNETES_SERVICE_HOST")),
        ("10.0.0.1/path", "6443", Err("KUBERNETES_SERVICE_HOST")),
        ("10.0.0.1:6443", "6443", Err("KUBERNETES_SERVICE_HOST")),
        ("user@10.0.0.1", "6443", Err("KUBERNETES_SERVICE_HOST")),
        ("two words", "6443", Err("KUBERNETES_SERVICE_HOST")),
    ];
    for (host, port, expected) in cases {
        match (server(host, port), expected) {
            (Ok(uri), Ok(expected)) => assert_eq!(uri.to_string(), expected),
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (got, expected) => panic!("{host} {port}: {got:?} instead of {expected:?}"),
        }
    }
}

const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: lab
clusters: [{name: lab, cluster: {server: 'http://127.0.0.1:1'}}]
contexts: [{name: lab, context: {cluster: lab, user: agent}}]
users: [{name: agent, user: {tokenFile: token}}]
";

#[tokio::test]
async fn a_kubeconfig_is_enough_and_the_server_need_not_be_up() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    std::fs::write(&path, KUBECONFIG).unwrap();
    std::fs::write(directory.path().join("token"), "first\n").unwrap();
    connect(Some(&path)).await.unwrap();
}

#[tokio::test]
async fn errors_name_the_file_and_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    let write = |text: String| std::fs::write(&path, text).unwrap();
    let error = async || connect(Some(&path)).await.err().unwrap().to_string();

    let message = error().await;
    assert!(message.contains("kubeconfig: No such file"), "{message}");

    write(KUBECONFIG.to_owned());
    let message = error().await;
    assert!(message.contains("token: the token's file"), "{message}");

    for (name, from, to, expected) in [
        ("no context", "current-context: lab", "", "current-context is not set"),
        ("unknown context", "current-context: lab", "current-context: la", "la"),
        ("proxy", "cluster: {", "cluster: {proxy-url: 'http://10.0.0.1', ", "proxy-url"),
        ("secret in a wrong place", "{tokenFile: token}", "S3CR3T", "not of the form"),
        ("secret in broken YAML", "{tokenFile: token}", "{token: S3CR3T, ]", "in line 7"),
    ] {
        write(KUBECONFIG.replace(from, to));
        let message = error().await;
        assert!(message.contains(expected), "{name}: {message}");
        assert!(message.contains("kubeconfig: ") && !message.contains("S3CR3T"), "{name}: {message}");
    }
}

/// What the requests have for a token that is written to `file` before each.
async fn tokens(file: &Path, written: &[Option<&str>]) -> Vec<String> {
    let echo = service_fn(|request: Request<()>| async move {
        let header = request.headers()[AUTHORIZATION].clone();
        assert!(header.is_sensitive() && !format!("{request:?}").contains("Bearer"));
        Ok::<_, Infallible>(Response::new(header.to_str().unwrap().to_owned()))
    });
    std::fs::write(file, "start").unwrap();
    let mut service = WithToken::new(echo, Some(file.to_owned())).unwrap();
    let mut seen = Vec::new();
    for token in written {
        match token {
            Some(token) => std::fs::write(file, token).unwrap(),
            None => std::fs::remove_file(file).unwrap(),
        }
        seen.push(service.call(Request::new(())).await.unwrap().into_body());
    }
    seen
}

#[tokio::test]
async fn each_request_has_the_token_as_it_is_then() {
    let directory = tempfile::tempdir().unwrap();
    let seen = tokens(&directory.path().join("token"), &[Some("one"), Some("two\n"), Some(""), None]).await;
    assert_eq!(seen, ["Bearer one", "Bearer two", "Bearer two", "Bearer two"]);
}

#[tokio::test]
async fn a_service_account_is_enough_over_both_families() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let double = Server::listen(Options::default(), address.parse().unwrap()).unwrap();
        let (host, port) = double.service_host();
        let url = server(&host.to_string(), &port.to_string()).unwrap();
        let account = tempfile::tempdir().unwrap();

        let missing = in_cluster(url.clone(), account.path()).await.unwrap_err().to_string();
        assert!(
            missing.contains("ca.crt: ") && missing.contains("automountServiceAccountToken"),
            "{missing}"
        );

        double.write_service_account(account.path(), "token-0").unwrap();
        let client = client(in_cluster(url, account.path()).await.unwrap()).unwrap();
        let status = async || {
            let request = Request::get("/api/v1/nodes").body(Body::empty()).unwrap();
            client.send(request).await.unwrap().status()
        };
        assert_eq!(status().await, StatusCode::OK);
        double.write_service_account(account.path(), "token-1").unwrap();
        assert_eq!(status().await, StatusCode::UNAUTHORIZED);
        double.api().add_token("token-1");
        assert_eq!(status().await, StatusCode::OK);
    }
}
