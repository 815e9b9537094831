//! What stands on the hooks of an interface: our program, and those of others that see a frame
//! before it does.
//!
//! Asking may wait for the kernel's lock on network configuration, so a thread of its own does it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tokio::sync::mpsc;

use super::pins::Hook;
use crate::sys::{
    bpf,
    netlink::{Filter, Questions},
};

/// A program or filter on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How it hangs there.
    pub hook: Hook,
    /// The program's ID; `None`: a filter without one.
    pub program: Option<u32>,
    /// Its name, or the filter's kind.
    pub name: String,
    /// Of a filter: its priority and handle.
    pub place: Option<(u16, u32)>,
}

impl Found {
    /// Whether it is the other one, or that one loaded anew.
    pub fn is_same(&self, other: &Found) -> bool {
        (self.hook, &self.name, self.place) == (other.hook, &other.name, other.place)
    }

    /// For an operator.
    pub fn told(&self) -> String {
        let by = match (self.hook, self.place) {
            (Hook::Xdp, _) => "XDP".to_owned(),
            (Hook::Generic, _) => "generic XDP".to_owned(),
            (_, Some((priority, _))) => format!("filter of priority {priority}"),
            (_, None) => "tcx".to_owned(),
        };
        let id = self.program.map_or(String::new(), |id| format!(", id {id}"));
        format!("{} ({by}{id})", self.name)
    }
}

/// What stands on an interface, in the order in which it sees a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// For what comes in.
    pub inward: Vec<Found>,
    /// For what goes out.
    pub outward: Vec<Found>,
}

/// Where one of our programs stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Nowhere,
    /// On this hook, behind these programs of others.
    On(Hook, Vec<Found>),
}

/// Where the program `wanted` stands in a line with others, of which those in `ours` are ours too.
pub fn place(line: &[Found], wanted: u32, ours: &[u32]) -> Place {
    let Some(at) = line.iter().position(|found| found.program == Some(wanted)) else { return Place::Nowhere };
    let is_foreign = |found: &&Found| found.program.is_none_or(|id| !ours.contains(&id));
    Place::On(line[at].hook, line[..at].iter().filter(is_foreign).cloned().collect())
}

/// What an interface has on its hooks now; `None`: it is gone.
pub async fn standing(questions: &Questions, ifindex: u32) -> Result<Option<Standing>> {
    let Some(on) = questions.about(ifindex).await? else { return Ok(None) };
    let mut standing = Standing::default();
    let xdp = [(Hook::Xdp, on.native), (Hook::Generic, on.generic)];
    let xdp = xdp.into_iter().filter_map(|(hook, program)| Some((hook, program?)));
    standing.inward.extend(xdp.map(|(hook, program)| by_link(hook, program)));
    let sides = [
        (false, &mut standing.inward, [Hook::Tcx, Hook::Clsact], on.inward),
        (true, &mut standing.outward, [Hook::TcxOut, Hook::ClsactOut], on.outward),
    ];
    for (outward, line, [tcx, clsact], filters) in sides {
        let programs = bpf::tcx_programs(ifindex, outward).context("cannot ask which programs stand on tcx")?;
        let Some(programs) = programs else { return Ok(None) };
        line.extend(programs.into_iter().map(|program| by_link(tcx, program)));
        line.extend(filters.into_iter().map(|filter| by_filter(clsact, filter)));
    }
    Ok(Some(standing))
}

fn by_link(hook: Hook, program: u32) -> Found {
    // It may be gone by now.
    let name = bpf::program_name(program).unwrap_or_default();
    Found { hook, program: Some(program), name, place: None }
}

fn by_filter(hook: Hook, Filter { priority, handle, program, name }: Filter) -> Found {
    let name = program.and_then(|program| bpf::program_name(program).ok()).unwrap_or(name);
    Found { hook, program, name, place: Some((priority, handle)) }
}

/// What is asked: the interfaces, and how often the hooks had been changed by then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    pub changes: u64,
    pub interfaces: Vec<u32>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub changes: u64,
    /// By interface, as far as they are still there.
    pub standing: BTreeMap<u32, Standing>,
    /// What could not be found out.
    pub errors: Vec<String>,
}

/// The thread that looks, which ends when this is dropped.
pub struct Looker(mpsc::Sender<Question>);

impl Looker {
    /// Starts the thread. The receiver gets every answer; it closes when the thread ends, which logs
    /// the cause.
    pub fn start() -> Result<(Looker, mpsc::Receiver<Look>)> {
        let (ask, mut questions) = mpsc::channel::<Question>(1);
        let (tell, answers) = mpsc::channel(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = async move {
            let socket = Questions::open()?;
            while let Some(question) = questions.recv().await {
                if tell.send(look(&socket, question).await).await.is_err() {
                    break;
                }
            }
            anyhow::Ok(())
        };
        let run = move || {
            if let Err(error) = runtime.block_on(run) {
                log::error!("the hooks are no longer looked at: {error:#}");
            }
        };
        std::thread::Builder::new().name("hooks".into()).spawn(run).context("cannot start the thread hooks")?;
        Ok((Looker(ask), answers))
    }

    /// Asks. While a question waits, another one is none.
    pub fn ask(&self, question: Question) {
        _ = self.0.try_send(question);
    }
}

async fn look(socket: &Questions, question: Question) -> Look {
    let mut look = Look { changes: question.changes, ..Look::default() };
    for ifindex in question.interfaces {
        match standing(socket, ifindex).await {
            Ok(Some(standing)) => _ = look.standing.insert(ifindex, standing),
            Ok(None) => {}
            Err(error) => look.errors.push(format!("interface {ifindex}: {error:#}")),
        }
    }
    look
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(hook: Hook, program: u32) -> Found {
        Found { hook, program: Some(program), name: format!("p{program}"), place: None }
    }

    #[test]
    fn a_program_stands_behind_the_foreign_ones_before_it_whatever_their_hook() {
        let filter = Found { hook: Hook::Clsact, program: None, name: "flower".into(), place: Some((1, 1)) };
        let line = [found(Hook::Generic, 9), found(Hook::Tcx, 7), found(Hook::Tcx, 8), filter.clone()];
        assert_eq!(place(&line, 9, &[]), Place::On(Hook::Generic, Vec::new()));
        assert_eq!(place(&line, 8, &[8]), Place::On(Hook::Tcx, line[..2].to_vec()));
        assert_eq!(place(&line, 8, &[9, 8]), Place::On(Hook::Tcx, line[1..2].to_vec()), "its own stand-in is none");
        assert_eq!(place(&line, 5, &[5]), Place::Nowhere);
        let line = [filter.clone(), found(Hook::Clsact, 5)];
        assert_eq!(place(&line, 5, &[5]), Place::On(Hook::Clsact, vec![filter]));
    }

    #[test]
    fn each_is_told_by_name_hook_and_number() {
        assert_eq!(found(Hook::Tcx, 7).told(), "p7 (tcx, id 7)");
        assert_eq!(found(Hook::Xdp, 7).told(), "p7 (XDP, id 7)");
        let filter = Found { hook: Hook::Clsact, program: None, name: "flower".into(), place: Some((3, 1)) };
        assert_eq!(filter.told(), "flower (filter of priority 3)");
    }
}
