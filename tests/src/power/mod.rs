//! The attacker's power: random segments of strangers between the honest traffic of a model.
//!
//! A stranger is blind. It may know the addresses and ports of a connection, on either side of the
//! balancer, and none of its numbers; or it knows nothing. A [`World`] runs a history of random
//! steps on the real program: honest ones ([`honest`]), after which the connection must be where
//! the model has it, and hostile ones ([`stranger`]), after which every word of every table
//! ([`words`]) must be what it was. So the tables are at every moment those of the same history
//! without any stranger.
//!
//! What a stranger may do is to open connections of its own: their slots, their places in the ring
//! of half-open flows and the choices of backends differ. They stay unconfirmed, no word of an
//! honest connection changes by them, they charge no backend and they give way.
//!
//! ```text
//! dice        chance that a seed repeats
//! words       all tables, word by word
//! world       the history: which step comes next, what must hold after it
//! honest      clients, backends, the controller and the clock
//! stranger    what comes from outside
//! ```

mod dice;
mod honest;
mod stranger;
mod words;
mod world;

pub use dice::Dice;
pub use words::Words;
pub use world::{Fault, Strangers, World};

use std::time::Duration;

use crate::program::{Bench, Hook, Setup};

/// SNAT ports of a backend: so few that strangers can use them up.
const PORTS: u16 = 16;

/// The tables of a [`World`]: three backends with few ports, and a limit for each client.
pub fn bench(hook: Hook) -> Bench {
    let mut setup = Setup { ports: PORTS, max_connections: 256, ..Setup::default() };
    setup.service.connect_timeout = Duration::from_secs(2);
    setup.service.client_limit = 16;
    Bench::with(hook, setup)
}
