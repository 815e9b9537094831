//! The lab's certificates: a CA, one certificate for all API servers, one for a client; and a
//! kubeconfig.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::topology::{PORT, VIP};

pub const CA: &str = "ca.crt";
pub const SERVER: &str = "apiserver.crt";
pub const SERVER_KEY: &str = "apiserver.key";
pub const CLIENT: &str = "admin.crt";
pub const CLIENT_KEY: &str = "admin.key";
pub const KUBECONFIG: &str = "admin.conf";

/// The name in the certificates, which TLS clients ask for.
pub const SERVER_NAME: &str = "kubernetes";

/// Writes all files of the PKI to `folder`.
pub fn create(folder: &Path, addresses: &[Ipv4Addr]) -> Result<()> {
    let ca_key = KeyPair::generate()?;
    let ca = ca_params().self_signed(&ca_key)?;
    let issuer = Issuer::new(ca_params(), ca_key);
    fs::write(folder.join(CA), ca.pem())?;

    let server_key = KeyPair::generate()?;
    let server = server_params(addresses)?.signed_by(&server_key, &issuer)?;
    fs::write(folder.join(SERVER), server.pem())?;
    fs::write(folder.join(SERVER_KEY), server_key.serialize_pem())?;

    let client_key = KeyPair::generate()?;
    let client = client_params().signed_by(&client_key, &issuer)?;
    fs::write(folder.join(CLIENT), client.pem())?;
    fs::write(folder.join(CLIENT_KEY), client_key.serialize_pem())?;
    fs::write(folder.join(KUBECONFIG), kubeconfig(folder))?;
    Ok(())
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = name(&[(DnType::CommonName, "kubernetes")]);
    params
}

fn server_params(addresses: &[Ipv4Addr]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new([SERVER_NAME.to_owned(), "localhost".to_owned()])?;
    params.subject_alt_names.extend(addresses.iter().map(|ip| SanType::IpAddress((*ip).into())));
    params.distinguished_name = name(&[(DnType::CommonName, "kube-apiserver")]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn client_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let user = [(DnType::OrganizationName, "system:masters"), (DnType::CommonName, "kubernetes-admin")];
    params.distinguished_name = name(&user);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn name(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    parts.iter().for_each(|(kind, value)| name.push(kind.clone(), *value));
    name
}

/// What kubeadm writes for the administrator, with the VIP as control plane endpoint.
fn kubeconfig(folder: &Path) -> String {
    let file = |name| folder.join(name).display().to_string();
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
         clusters: [{{name: lab, cluster: {{server: \"https://{VIP}:{PORT}\", certificate-authority: \"{}\"}}}}]\n\
         users: [{{name: admin, user: {{client-certificate: \"{}\", client-key: \"{}\"}}}}]\n\
         contexts: [{{name: lab, context: {{cluster: lab, user: admin}}}}]\n",
        file(CA),
        file(CLIENT),
        file(CLIENT_KEY)
    )
}
