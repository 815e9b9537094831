//! The lab's clients. They run as processes on a client host and print what they saw as JSON.

pub mod bulk;
mod connection;
pub mod hold;
pub mod storm;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::{pki, transport::Transport};

/// What to connect to, and how.
#[derive(clap::Args, Clone, Debug)]
pub struct Target {
    /// Address and port to connect to
    pub address: SocketAddrV4,
    /// Use TLS with the certificates in this folder [default: the plain protocol]
    #[arg(long)]
    pub tls: Option<PathBuf>,
    /// Source addresses, used in turn [default: the kernel's choice]
    #[arg(long, value_delimiter = ',')]
    pub from: Vec<Ipv4Addr>,
    /// Use MPTCP sockets
    #[arg(long)]
    pub mptcp: bool,
    /// Milliseconds after which a connection that is not served counts as failed
    #[arg(long, default_value_t = 15_000)]
    pub timeout_ms: u64,
}

impl Target {
    fn transport(&self) -> Transport {
        if self.mptcp { Transport::Mptcp } else { Transport::Tcp }
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    fn connector(&self) -> Result<Option<TlsConnector>> {
        Ok(self.tls.as_deref().map(tls_config).transpose()?.map(|config| TlsConnector::from(Arc::new(config))))
    }
}

/// TLS for a client with a certificate, like kubectl.
pub fn tls_config(folder: &Path) -> Result<ClientConfig> {
    let ca = CertificateDer::from_pem_file(folder.join(pki::CA)).context(pki::CA)?;
    let certificate = CertificateDer::from_pem_file(folder.join(pki::CLIENT)).context(pki::CLIENT)?;
    let key = PrivateKeyDer::from_pem_file(folder.join(pki::CLIENT_KEY)).context(pki::CLIENT_KEY)?;
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(vec![certificate], key)?)
}
