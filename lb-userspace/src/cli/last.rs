//! Taking out the last backend that gets connections: on a terminal the operator is asked first;
//! everywhere the command says what it has done.

use std::io::{self, IsTerminal, Write};

use super::args::BackendArg;
use crate::{
    api::{admin::Changed, types::Backend},
    client::{Client, Failure},
    words::BackendState,
};

/// Whether a backend gets its share of new connections.
fn is_served(backend: &Backend) -> bool {
    matches!(backend.state, BackendState::Up | BackendState::SlowStart)
}

/// The service whose clients nobody would serve if this backend were taken out.
fn left_alone<'a>(backends: &'a [Backend], which: &BackendArg) -> Option<&'a str> {
    let is_meant = |backend: &&Backend| {
        *backend.name == *which.backend && which.service.as_deref().is_none_or(|service| *backend.service == *service)
    };
    let meant = backends.iter().find(is_meant).filter(|backend| is_served(backend))?;
    let others = |other: &&Backend| other.service == meant.service && other.name != meant.name;
    (!backends.iter().filter(others).any(is_served)).then_some(&meant.service)
}

/// Asks before the last one is taken out, if there is somebody to ask.
pub fn ask(client: &Client, which: &BackendArg, force: bool) -> Result<(), Failure> {
    if force || !io::stdin().is_terminal() {
        return Ok(());
    }
    let backends: Vec<Backend> = client.get("/api/v1/backends")?.read()?;
    let Some(service) = left_alone(&backends, which) else { return Ok(()) };
    eprint!(
        "{} is the last backend of {service} that is up: its clients will be refused. Go on? [y/N] ",
        which.backend
    );
    let mut answer = String::new();
    io::stderr()
        .flush()
        .and_then(|()| io::stdin().read_line(&mut answer))
        .map_err(|error| Failure::Refused(format!("cannot ask: {error}; --force goes on without a question")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Refused("nothing has changed".into())),
    }
}

/// Warns if a service has none left.
pub fn warn(changed: &Changed) {
    if let Some(warning) = &changed.warning {
        eprintln!("warning: {warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::backend;

    #[test]
    fn the_last_one_that_is_up_in_its_service_leaves_its_clients_alone() {
        use BackendState::{Down, Draining, SlowStart, Up};
        let which =
            |name: &str, service: Option<&str>| BackendArg { backend: name.into(), service: service.map(Into::into) };
        let rows = |states: &[(&str, &str, BackendState)]| {
            states
                .iter()
                .map(|(service, name, state)| Backend {
                    service: (*service).into(),
                    name: (*name).into(),
                    state: *state,
                    ..backend()
                })
                .collect::<Vec<_>>()
        };
        let last = rows(&[("api", "a", Up), ("api", "b", Draining), ("api", "c", Down), ("other", "d", Up)]);
        assert_eq!(left_alone(&last, &which("a", None)), Some("api"));
        assert_eq!(left_alone(&last, &which("a", Some("other"))), None);
        assert_eq!(left_alone(&last, &which("b", None)), None, "it serves nobody");
        assert_eq!(left_alone(&last, &which("d", None)), Some("other"));
        let two = rows(&[("api", "a", Up), ("api", "b", SlowStart)]);
        assert_eq!(left_alone(&two, &which("a", None)), None);
    }
}
