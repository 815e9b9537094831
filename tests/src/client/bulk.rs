//! `evenkeel-lab bulk`: a large transfer over TLS in each direction, with checksums.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{
    Target,
    connection::{Connection, Failure},
};
use crate::apiserver::pattern::{self, Checksum, Pattern};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    Download,
    Upload,
}

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    pub target: Target,
    #[arg(value_enum)]
    pub direction: Direction,
    #[arg(long, default_value_t = 1 << 30)]
    pub bytes: u64,
}

/// What arrived.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub bytes: u64,
    pub served_by: String,
    /// The checksums of what arrived and of what was sent.
    pub sha256: String,
    pub expected: String,
    pub seconds: f64,
}

/// The stand-in's answer to an upload.
#[derive(Deserialize)]
struct Uploaded {
    bytes: u64,
    sha256: String,
}

pub async fn run(options: Options) -> Result<()> {
    let tls = options.target.connector()?.context("bulk needs --tls")?;
    let open = Connection::open(
        options.target.transport().socket(),
        options.target.address,
        options.target.from.first().copied(),
        Some(&tls),
    );
    let mut connection = open.await.map_err(told)?;
    let started = Instant::now();
    let (bytes, served_by, sha256) = match options.direction {
        Direction::Download => download(&mut connection, options.bytes).await?,
        Direction::Upload => upload(&mut connection, options.bytes).await?,
    };
    let seconds = started.elapsed().as_secs_f64();
    let expected = pattern::checksum(options.bytes);
    println!("{}", serde_json::to_string(&Report { bytes, served_by, sha256, expected, seconds })?);
    Ok(())
}

async fn download(connection: &mut Connection, bytes: u64) -> Result<(u64, String, String)> {
    connection.request("GET", &format!("/bulk?bytes={bytes}"), 0).await.map_err(told)?;
    let reply = connection.reply().await.map_err(told)?;
    let mut sum = Checksum::default();
    sum.add(&reply.rest);
    let mut read = reply.rest.len() as u64;
    let mut block = vec![0; 64 << 10];
    while read < bytes {
        let length = connection.read(&mut block).await?;
        if length == 0 {
            bail!("closed after {read} of {bytes} bytes");
        }
        sum.add(&block[..length]);
        read += length as u64;
    }
    Ok((read, reply.served_by, sum.finish()))
}

async fn upload(connection: &mut Connection, bytes: u64) -> Result<(u64, String, String)> {
    connection.request("POST", "/upload", bytes).await.map_err(told)?;
    for block in Pattern::new(bytes) {
        connection.write_all(&block).await?;
    }
    let reply = connection.reply().await.map_err(told)?;
    let mut body = reply.rest;
    let mut block = [0; 512];
    while (body.len() as u64) < reply.length.context("an answer without a length")? {
        let length = connection.read(&mut block).await?;
        if length == 0 {
            bail!("closed in the middle of the answer");
        }
        body.extend_from_slice(&block[..length]);
    }
    let uploaded: Uploaded = serde_json::from_slice(&body)?;
    Ok((uploaded.bytes, reply.served_by, uploaded.sha256))
}

fn told(failure: Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure}")
}

/// Runs a transfer on `host`, over TLS with the lab's certificates, and checks that all bytes
/// arrived as sent.
pub fn transfer(host: &crate::Host, address: &str, direction: &str, bytes: u64) -> Result<Report> {
    let program: PathBuf = crate::binaries::lab()?;
    let mut command = host.command(program);
    command.args(["bulk", address, direction, "--bytes", &bytes.to_string(), "--tls"]).arg(host.folder());
    let report: Report = serde_json::from_str(&crate::process::output(&mut command)?)?;
    if report.bytes != bytes || report.sha256 != report.expected {
        bail!("{direction} damaged: {report:?}");
    }
    Ok(report)
}
