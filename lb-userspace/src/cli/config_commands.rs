//! `check` and `dump`, which read files and need no daemon.

use std::{path::Path, time::Duration};

use serde_json::json;

use super::{args::Format, output};
use crate::{
    client::{Failure, units},
    config::{self, Config, Problem, Problems},
    daemon::remains::{self, Detached},
    vrrp::shell::overhear::overhear,
};

/// `check`: "configuration ok" and the room for connections, or every error. With `here`, what this
/// host lacks is an error.
pub fn check(path: &Path, here: bool, listen: Option<Duration>, format: Format) -> Result<(), Failure> {
    let loaded = config::load(path).and_then(|loaded| match here && !loaded.here.is_empty() {
        true => Err(Problems(loaded.here)),
        false => Ok(loaded),
    });
    if format == Format::Json {
        return check_json(loaded);
    }
    let loaded = loaded.map_err(|problems| Failure::Refused(problems.to_string()))?;
    warn(loaded.warnings.iter().chain(&loaded.here));
    output::print(&format!("configuration ok\n{}", room(&loaded.config)))?;
    listen.map_or(Ok(()), |time| compare_with_the_wire(&loaded.config, time))
}

/// What is heard of each virtual router, and an error if that does not agree with the configuration.
fn compare_with_the_wire(config: &Config, time: Duration) -> Result<(), Failure> {
    if config.vrrp.is_empty() {
        return Err(Failure::Refused("--listen: the configuration has no [[vrrp]]".into()));
    }
    let heard = overhear(&config.vrrp, time).map_err(|error| Failure::Refused(format!("--listen: {error:#}")))?;
    let mut differ = Vec::new();
    for (instance, heard) in heard {
        if heard.is_empty() {
            let time = time.as_secs_f64();
            output::print(&format!("VRRP instance {instance} hears no advertisement within {time} s\n"))?;
        }
        for overheard in heard {
            let line = format!("VRRP instance {instance} {}", overheard.text);
            match overheard.differs {
                true => differ.push(line),
                false => output::print(&format!("{line}\n"))?,
            }
        }
    }
    if differ.is_empty() { Ok(()) } else { Err(Failure::Refused(differ.join("\n"))) }
}

/// `detach`: removes what an ended daemon has left.
pub fn detach(path: &Path, format: Format) -> Result<(), Failure> {
    let loaded = config::load(path).map_err(|problems| Failure::Refused(problems.to_string()))?;
    let detached = remains::detach(&loaded.config).map_err(|error| Failure::Refused(format!("{error:#}")))?;
    if format == Format::Json {
        return output::print(&format!("{}\n", json!(detached)));
    }
    if detached == Detached::default() {
        return output::print("nothing was left\n");
    }
    let mut text = String::new();
    detached.interfaces.iter().for_each(|name| text += &format!("detached from {name}\n"));
    detached.addresses.iter().for_each(|address| text += &format!("removed {address}\n"));
    detached.files.iter().for_each(|file| text += &format!("removed {}\n", file.display()));
    output::print(&text)
}

fn check_json(loaded: Result<config::Loaded, Problems>) -> Result<(), Failure> {
    let (answer, outcome) = match loaded {
        Ok(config::Loaded { config, mut warnings, here, files }) => {
            warnings.extend(here);
            let room = config.capacity();
            let answer = json!({
                "ok": true, "errors": [], "warnings": warnings, "files": files,
                "capacity": room.connections, "memory_bytes": room.memory_bytes,
            });
            (answer, Ok(()))
        }
        Err(problems) => {
            let failure = Failure::Refused(problems.to_string());
            (json!({ "ok": false, "errors": problems.0, "warnings": [] }), Err(failure))
        }
    };
    output::print(&format!("{answer}\n"))?;
    outcome
}

fn warn<'a>(warnings: impl IntoIterator<Item = &'a Problem>) {
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
}

/// Room for connections and the memory it takes.
fn room(config: &Config) -> String {
    let mut text = String::new();
    for service in &config.services {
        let pools = service.pools().count() as u64;
        text += &format!(
            "service {}: {pools} pairs of backend and SNAT address x {} ports = {} connections, {} with one backend left\n",
            service.name,
            service.snat_ports.count(),
            service.capacity(),
            service.capacity() / (service.backends.len() as u64).max(1)
        );
    }
    let room = config.capacity();
    text + &format!(
        "room for {} connections at once ({} slots, max_connections {}), in {} of memory\n",
        room.connections,
        room.slots,
        config.daemon.max_connections,
        units::bytes(room.memory_bytes)
    )
}

/// `dump`: the whole configuration as evenkeel understands it.
pub fn dump(path: &Path, format: Format) -> Result<(), Failure> {
    let loaded = config::load(path).map_err(|problems| Failure::Refused(problems.to_string()))?;
    warn(loaded.warnings.iter().chain(&loaded.here));
    match format {
        Format::Json => {
            let json = serde_json::to_string(&loaded.config);
            let json = json.map_err(|error| Failure::Refused(format!("cannot be written as JSON: {error}")))?;
            output::print(&format!("{json}\n"))
        }
        _ => output::print(&loaded.config.to_toml()),
    }
}
