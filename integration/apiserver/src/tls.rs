//! A certificate authority, and a server certificate from it.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// What a server shows, and what clients check it with.
pub(crate) struct Identity {
    /// The authority's certificate, in PEM.
    pub ca: String,
    pub acceptor: TlsAcceptor,
}

impl Identity {
    /// A new authority, and a certificate for these addresses, `localhost` and the server's name in a cluster.
    pub fn new(addresses: &[IpAddr]) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let mut names: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        names.extend(["127.0.0.1", "::1", "localhost", "kubernetes.default.svc"].map(str::to_owned));
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;

        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .context("the certificate that was just made is not usable")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { ca: authority.pem(), acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}
