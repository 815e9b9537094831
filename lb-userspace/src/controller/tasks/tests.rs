use super::*;
use crate::controller::resets::{Job, Only, Resets, Which};
use lb_common::verdict::Reason;

fn job(resets: &mut Resets) -> JobId {
    let (which, only, reason) = (Which::Backend(0), Only::Open, Reason::Killed);
    resets.push(Job { which, only, reason, rate: 1, not_before: Instant::ZERO, begun_by: Instant::ZERO })
}

#[test]
fn a_task_counts_what_its_job_has_closed_while_it_runs_and_after() {
    let (mut tasks, mut resets) = (Tasks::default(), Resets::default());
    let (first, second) = (job(&mut resets), job(&mut resets));
    let one = tasks.begin(10, 5, Work::Job(first));
    let two = tasks.begin(20, 5, Work::Job(second));
    assert_eq!((one.id, two.id, one.state), (1, 2, TaskState::Running));
    let running = tasks.get(1, |id| (id == first).then_some(4)).expect("a task");
    assert_eq!((running.reset, running.total, running.state), (4, 10, TaskState::Running));
    tasks.job_over(first, 9);
    let over = tasks.get(1, |_| panic!("it has no job any more")).expect("a task");
    assert_eq!((over.reset, over.state), (9, TaskState::Done));
    assert_eq!(tasks.get(2, |_| Some(0)).expect("a task").reset, 0);
    assert_eq!(tasks.get(3, |_| None), None);
}

#[test]
fn a_stopped_task_keeps_what_it_has_done() {
    let (mut tasks, mut resets) = (Tasks::default(), Resets::default());
    let id = job(&mut resets);
    tasks.begin(10, 5, Work::Job(id));
    assert_eq!(tasks.end(1, TaskState::Stopped, |_| Some(3)), Some(id), "its job is to be called off");
    let stopped = tasks.get(1, |_| None).expect("a task");
    assert_eq!((stopped.reset, stopped.state), (3, TaskState::Stopped));
    assert_eq!(tasks.end(1, TaskState::Done, |_| Some(3)), None);
    assert_eq!(tasks.get(1, |_| None), Some(stopped), "once is enough");
}

#[test]
fn those_that_are_over_are_forgotten_at_last_and_those_that_run_are_not() {
    let (mut tasks, mut resets) = (Tasks::default(), Resets::default());
    tasks.begin(1, 1, Work::Job(job(&mut resets)));
    for _ in 0..1000 {
        let id = job(&mut resets);
        tasks.begin(1, 1, Work::Job(id));
        tasks.job_over(id, 1);
    }
    assert_eq!(tasks.tasks.len(), REMEMBERED + 2);
    assert!(
        tasks.get(1, |_| None).is_some() && tasks.get(2, |_| None).is_none() && tasks.get(1001, |_| None).is_some()
    );
}
