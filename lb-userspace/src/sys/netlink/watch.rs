//! The thread that keeps next hops and links up to date.

use std::{pin::Pin, time::Duration};

use anyhow::{Context, Result, bail};
use futures_util::{Stream, StreamExt};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::SocketAddr,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    addresses::is_renewed,
    hops::{Change, Destination, Hops},
    ways::Ways,
    wire,
};

/// Changes that may wait for the receiver. Beyond that only the latest of each destination is kept.
const CHANGES: usize = 64;
/// How long routes may settle before they are looked up again: they change in bursts.
const SETTLE: Duration = Duration::from_millis(50);
/// How often a neighbour that does not answer is solicited again (the kernel itself tries three
/// times, a second apart).
const RETRY: Duration = Duration::from_secs(1);
/// How often it is reported at most by which next hops others are reached: the receiver may have to
/// look at every connection.
const WAYS: Duration = Duration::from_millis(100);
/// How long it takes at least from one list of all routes to the next: there may be many.
const ROUTES: Duration = Duration::from_secs(1);
/// How often in a row watching may fail, a second apart; and how long it has to last to count as
/// having succeeded.
const FAILURES: u32 = 10;
const LONG: Duration = Duration::from_secs(60);
/// How often the kernel is notified that a neighbour is in use: more often than it takes the kernel
/// to doubt one (base_reachable_time / 2, 15 s).
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A handle to the task, which ends when the handle is dropped.
pub struct Watch {
    wanted: watch::Sender<Vec<Destination>>,
}

impl Watch {
    /// Starts the task on a thread of its own: a question may wait for the kernel's lock on network
    /// configuration, which other processes can hold for any length of time. The receiver gets every
    /// change; it closes when the task ends, which logs the cause.
    pub fn start() -> Result<(Watch, mpsc::Receiver<Change>)> {
        let (wanted, wants) = watch::channel(Vec::new());
        let (changes, receiver) = mpsc::channel(CHANGES);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let task = {
            let _inside = runtime.enter();
            Task::open(wants)?
        };
        let run = move || {
            if let Err(error) = runtime.block_on(watch_on(task, &changes)) {
                log::error!("next hops are no longer watched: {error:#}");
            }
        };
        std::thread::Builder::new().name("next-hops".into()).spawn(run).context("cannot start the thread next-hops")?;
        Ok((Watch { wanted }, receiver))
    }

    /// Replaces the whole set of destinations.
    pub fn want(&self, destinations: Vec<Destination>) {
        self.wanted.send_replace(destinations);
    }

    /// Looks all routes and neighbours up again.
    pub fn refresh(&self) {
        self.wanted.send_modify(|_| {});
    }
}

type Messages = Pin<Box<dyn Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)> + Send>>;

/// Watches until the end. A question that the kernel refuses or does not answer in time is asked
/// anew, over other sockets; only if that fails again and again, this does.
async fn watch_on(mut task: Task, changes: &mpsc::Sender<Change>) -> Result<()> {
    let (mut failures, mut reopened) = (0, Ok(()));
    loop {
        let began = Instant::now();
        let ended = match reopened {
            Ok(()) => task.run(changes).await,
            failed => failed,
        };
        let Err(error) = ended else { return Ok(()) };
        failures = if began.elapsed() > LONG { 1 } else { failures + 1 };
        if failures > FAILURES {
            return Err(error);
        }
        log::warn!("next hops: {error:#}; watching them anew");
        tokio::time::sleep(RETRY).await;
        reopened = task.reopen();
    }
}

/// One socket for questions and one for news, so that a burst of news that overruns its socket
/// loses no answer.
struct Sockets {
    handle: Handle,
    messages: Messages,
    /// The tasks of the two, which end with this value.
    _tasks: JoinSet<()>,
}

impl Sockets {
    fn open() -> Result<Sockets> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
        ];
        let (questions, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let (news, _, messages) =
            rtnetlink::new_multicast_connection(&groups).context("cannot open a netlink socket for news")?;
        let mut tasks = JoinSet::new();
        tasks.spawn(questions);
        tasks.spawn(news);
        Ok(Sockets { handle, messages: Box::pin(messages), _tasks: tasks })
    }
}

struct Task {
    sockets: Sockets,
    wants: watch::Receiver<Vec<Destination>>,
    hops: Hops,
    ways: Ways,
    /// From when on news of the ways may be reported.
    ways_at: Instant,
    /// From when on all routes may be listed.
    routes_at: Instant,
    /// When routes and neighbours are to be looked up again.
    look_at: Option<Instant>,
    retry_at: Instant,
    keep_alive_at: Instant,
}

/// What woke the loop.
enum Turn<'a> {
    /// The set of destinations was replaced, or a refresh was asked for.
    Want,
    /// News from the kernel.
    Hear(NetlinkPayload<RouteNetlinkMessage>),
    /// The receiver has room.
    Report(mpsc::Permit<'a, Change>),
    /// Something is due.
    Alarm,
    /// The kernel's news socket was closed.
    Deaf,
    /// The handle or the receiver was dropped.
    End,
}

impl Task {
    fn open(wants: watch::Receiver<Vec<Destination>>) -> Result<Task> {
        let now = Instant::now();
        Ok(Task {
            sockets: Sockets::open()?,
            wants,
            hops: Hops::default(),
            ways: Ways::default(),
            ways_at: now,
            routes_at: now,
            look_at: Some(now),
            retry_at: now,
            keep_alive_at: now + KEEP_ALIVE,
        })
    }

    /// What was reported holds: what went meanwhile is still to be reported as gone.
    fn reopen(&mut self) -> Result<()> {
        self.sockets = Sockets::open()?;
        self.look_at = Some(Instant::now());
        self.routes_at = Instant::now();
        Ok(())
    }

    async fn run(&mut self, changes: &mpsc::Sender<Change>) -> Result<()> {
        self.list_links().await?;
        loop {
            let waiting = !self.hops.unresolved().is_empty();
            let alarm = self.alarm(waiting);
            let reportable = self.hops.has_change() || self.has_ways();
            let turn = tokio::select! {
                changed = self.wants.changed() => changed.map_or(Turn::End, |()| Turn::Want),
                message = self.sockets.messages.next() => message.map_or(Turn::Deaf, |(message, _)| Turn::Hear(message.payload)),
                permit = changes.reserve(), if reportable => permit.map_or(Turn::End, Turn::Report),
                () = sleep_until(alarm) => Turn::Alarm,
            };
            match turn {
                Turn::Want => {
                    let wanted = self.wants.borrow_and_update().clone();
                    self.hops.want(&wanted);
                    self.look().await?;
                }
                Turn::Hear(payload) => self.hear(payload).await?,
                Turn::Report(permit) => {
                    if let Some(change) = self.hops.take_change().or_else(|| self.take_ways()) {
                        permit.send(change);
                    }
                }
                Turn::Alarm => self.on_alarm(waiting).await?,
                Turn::Deaf => bail!("the netlink socket was closed"),
                Turn::End => return Ok(()),
            }
        }
    }

    fn has_ways(&self) -> bool {
        self.ways.has_news() && self.ways_at <= Instant::now()
    }

    fn take_ways(&mut self) -> Option<Change> {
        if !self.has_ways() {
            return None;
        }
        let news = self.ways.news();
        if news.is_empty() {
            return None;
        }
        self.ways_at = Instant::now() + WAYS;
        Some(Change::Ways { news })
    }

    fn alarm(&self, waiting: bool) -> Instant {
        let retry = waiting.then_some(self.retry_at);
        let ways = self.ways.has_news().then_some(self.ways_at);
        [self.look_at, retry, ways].into_iter().flatten().fold(self.keep_alive_at, Instant::min)
    }

    async fn on_alarm(&mut self, waiting: bool) -> Result<()> {
        let now = Instant::now();
        if self.look_at.is_some_and(|at| at <= now) {
            self.look().await?;
        }
        if waiting && self.retry_at <= now {
            self.resolve_missing().await?;
        }
        if self.keep_alive_at <= now {
            let routers = self.ways.routers();
            for neighbour in self.hops.neighbours().into_iter().chain(routers) {
                wire::resolve(&self.sockets.handle, neighbour).await?;
            }
            self.keep_alive_at = now + KEEP_ALIVE;
        }
        Ok(())
    }

    /// Looks up every route, then the neighbours they name.
    async fn look(&mut self) -> Result<()> {
        self.look_at = None;
        for destination in self.hops.wanted() {
            let via = wire::look_up(&self.sockets.handle, destination).await?;
            self.hops.route(destination, via);
        }
        let now = Instant::now();
        let all = self.routes_at <= now;
        if all {
            self.routes_at = now + ROUTES;
            let known = self.ways.routers();
            self.ways.routes(wire::all_routes(&self.sockets.handle).await?);
            for router in self.ways.routers().difference(&known) {
                wire::resolve(&self.sockets.handle, *router).await?;
            }
        } else {
            self.look_at = Some(self.routes_at);
        }
        if all || !self.hops.unresolved().is_empty() {
            let listed: Vec<_> =
                wire::all_neighbours(&self.sockets.handle).await?.iter().filter_map(wire::neighbour).collect();
            self.hops.all_neighbours(&listed);
            self.ways.neighbours(listed);
        }
        self.resolve_missing().await
    }

    async fn resolve_missing(&mut self) -> Result<()> {
        for neighbour in self.hops.unresolved() {
            wire::resolve(&self.sockets.handle, neighbour).await?;
        }
        self.retry_at = Instant::now() + RETRY;
        Ok(())
    }

    async fn hear(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> Result<()> {
        match payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => self.hear_neighbour(&message),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(message)) => {
                if let Some((neighbour, _)) = wire::neighbour(&message) {
                    self.hops.neighbour(neighbour, None);
                    self.ways.neighbour(neighbour, None);
                }
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => self.hear_link(&message),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) => {
                if let Some(news) = wire::link(&message) {
                    self.hops.link_gone(news.ifindex);
                    self.look_soon();
                }
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) if is_renewed(&address) => {}
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(_)
                | RouteNetlinkMessage::DelRoute(_)
                | RouteNetlinkMessage::NewAddress(_)
                | RouteNetlinkMessage::DelAddress(_),
            ) => self.look_soon(),
            // The kernel had more news than the socket could hold.
            NetlinkPayload::Overrun(_) => {
                self.list_links().await?;
                self.look_soon();
            }
            _ => {}
        }
        Ok(())
    }

    fn hear_neighbour(&mut self, message: &rtnetlink::packet_route::neighbour::NeighbourMessage) {
        if let Some((neighbour, mac)) = wire::neighbour(message) {
            self.hops.neighbour(neighbour, mac);
            self.ways.neighbour(neighbour, mac);
        }
    }

    fn hear_link(&mut self, message: &rtnetlink::packet_route::link::LinkMessage) {
        if let Some(news) = wire::link(message)
            && self.hops.link(news)
        {
            self.look_soon();
        }
    }

    fn look_soon(&mut self) {
        let soon = Instant::now() + SETTLE;
        // All routes may have to wait for longer; those to the backends have not.
        self.look_at = Some(self.look_at.map_or(soon, |at| at.min(soon)));
    }

    async fn list_links(&mut self) -> Result<()> {
        let messages = wire::all_links(&self.sockets.handle).await?;
        let found: Vec<_> = messages.iter().filter_map(wire::link).collect();
        for ifindex in self.hops.links() {
            if !found.iter().any(|news| news.ifindex == ifindex) {
                self.hops.link_gone(ifindex);
            }
        }
        for news in found {
            self.hops.link(news);
        }
        Ok(())
    }
}
