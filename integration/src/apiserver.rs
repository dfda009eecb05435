//! The API server double as a program of its own, for a container that finds it as a pod finds its API server.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sheave_apiserver::{Options, Server};

/// Serves recorded lists on 127.0.0.1:6443 until standard input ends, then prints what was asked: verb, resource,
/// status and how often, one line each. Once it serves, the files of a service account are in `account`.
pub fn run(account: &Path, lists: &[PathBuf]) -> Result<()> {
    let options = Options::default();
    let token = options.token.clone();
    let server = Server::listen(options, SocketAddr::from((Ipv4Addr::LOCALHOST, 6443)))?;
    for list in lists {
        let name = || list.display().to_string();
        let body = std::fs::read_to_string(list).with_context(name)?;
        server.api().load_list(&body).with_context(name)?;
    }
    server.write_service_account(account, &token)?;
    io::copy(&mut io::stdin(), &mut io::sink()).context("standard input")?;
    for ((verb, resource, status), times) in server.api().counts() {
        println!("{verb} {resource} {status} {times}");
    }
    Ok(())
}
