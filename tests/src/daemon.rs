//! The evenkeel daemon as a process on the balancer, and its command line.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    Host, Lab, Process, binaries, process,
    process::Talk,
    topology::{PORT, VIP},
    wait,
};

/// Most of it is for loading and verifying the programs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The daemon and its files.
pub struct Evenkeel {
    host: Host,
    folder: PathBuf,
    bpffs: PathBuf,
    /// The path that the daemon is started from.
    binary: PathBuf,
    /// The command that starts it, before its own.
    under: Vec<String>,
    /// More options for `evenkeel run`.
    options: Vec<String>,
    /// More environment variables.
    environment: Vec<(String, String)>,
    /// How long it may take to start, to be upgraded or to stop.
    patience: Duration,
    process: Option<Process>,
}

/// The result of a command.
#[derive(Debug)]
pub struct Answer {
    /// The exit code; -1 after a signal.
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Evenkeel {
    /// Writes the configuration, which is `services` (the `[[service]]` tables in TOML) after a
    /// `[daemon]` table, starts the daemon on the balancer and waits until it answers.
    pub fn start(lab: &Lab, services: &str) -> Result<Self> {
        let mut evenkeel = Self::stopped(lab, services)?;
        evenkeel.run()?;
        Ok(evenkeel)
    }

    /// Like [`start`](Self::start), without starting the daemon.
    pub fn stopped(lab: &Lab, services: &str) -> Result<Self> {
        Self::on(lab, &lab.balancer, services)
    }

    /// Like [`stopped`](Self::stopped), on any host: each has its own files and pins.
    pub fn on(lab: &Lab, host: &Host, services: &str) -> Result<Self> {
        let name = format!("evenkeel-{}", host.name);
        let folder = lab.folder().join(&name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let bpffs = lab.bpffs().join(&name);
        let binary = binaries::evenkeel()?;
        let (host, options, environment) = (host.clone(), Vec::new(), Vec::new());
        let patience = PATIENCE;
        let under = Vec::new();
        let evenkeel = Self { host, folder, bpffs, binary, under, options, environment, patience, process: None };
        evenkeel.write(services)?;
        Ok(evenkeel)
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("evenkeel.toml")
    }

    /// The `state_dir` of the configuration.
    pub fn state_dir(&self) -> &Path {
        &self.folder
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    /// The folder in which it pins its programs and maps.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Writes another configuration, which `reload` applies.
    pub fn write(&self, services: &str) -> Result<()> {
        let (state, bpffs) = (self.folder.display(), self.bpffs.display());
        let group = "root";
        let text =
            format!("[daemon]\nstate_dir = \"{state}\"\nbpffs = \"{bpffs}\"\nsocket_group = \"{group}\"\n\n{services}");
        fs::write(self.config(), text).with_context(|| self.config().display().to_string())
    }

    /// Adds an option of `evenkeel run` for every start from now on.
    pub fn run_option(&mut self, option: &str) {
        self.options.push(option.to_owned());
    }

    /// Starts it with mounts of its own from now on, among them a bpffs in place of the lab's: what it
    /// pins ends with it.
    pub fn run_with_private_mounts(&mut self, lab: &Lab) {
        let mount = format!("mount -t bpf private {} && exec \"$@\"", lab.bpffs().display());
        self.under = ["unshare", "--mount", "sh", "-c", &mount, "sh"].map(str::to_owned).to_vec();
    }

    /// Waits longer than usual for it to start, to be upgraded or to stop.
    pub fn be_patient(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Replaces the program that the daemon is started from, the way a package does.
    pub fn install(&mut self, program: &Path) -> Result<()> {
        let (place, new) = (self.folder.join("bin-evenkeel"), self.folder.join("bin-evenkeel.new"));
        fs::copy(program, &new).with_context(|| format!("{} to {}", program.display(), new.display()))?;
        fs::rename(&new, &place)?;
        self.binary = place;
        Ok(())
    }

    /// Adds an environment variable for every start from now on.
    pub fn run_with(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Replaces the options for every start from now on.
    pub fn run_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|option| (*option).to_owned()).collect();
    }

    /// Starts the daemon, for the first time or again, and waits until it answers.
    pub fn run(&mut self) -> Result<()> {
        let mut whole = self.under.iter().map(OsStr::new).chain([self.binary.as_os_str()]);
        let mut command = self.host.command(whole.next().context("no command")?);
        command.args(whole).args(["run", "-c"]).arg(self.config()).args(&self.options);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut process = self.host.start("evenkeel", &mut command)?;
        let ready = wait::until("evenkeel answers", self.patience, || {
            let is_over = !process.is_running();
            is_over.then(|| Err(process.log())).or_else(|| self.status().ok().map(Ok))
        });
        match ready {
            Ok(Ok(_)) => {}
            Ok(Err(log)) => bail!("evenkeel ended at its start:\n{log}"),
            Err(late) => return Err(late.context(process.log())),
        }
        self.process = Some(process);
        Ok(())
    }

    /// `evenkeel upgrade`: the installed program takes over, and the log goes on.
    pub fn upgrade(&mut self) -> Result<()> {
        Process::inherit_orphans()?;
        self.done(&["upgrade"])?;
        self.after_upgrade()
    }

    /// The same through SIGUSR2.
    pub fn upgrade_by_signal(&mut self) -> Result<()> {
        Process::inherit_orphans()?;
        self.signal(Signal::SIGUSR2)?;
        self.after_upgrade()
    }

    /// After the command `upgrade`, with [`Process::inherit_orphans`] before it: waits until the
    /// old process has ended with success and another one answers.
    pub fn after_upgrade(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("evenkeel does not run")?;
        process.succeed(self.patience)?;
        let id = self.pid()?;
        self.process.as_mut().context("evenkeel does not run")?.continue_as(id)
    }

    /// The id of the process that answers.
    pub fn pid(&self) -> Result<u32> {
        let status = self.status()?;
        status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("no pid in the status")
    }

    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Kills it (`kill -9`); the datapath goes on.
    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn hang_up(&self) -> Result<()> {
        self.signal(Signal::SIGHUP)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("evenkeel does not run")?.signal(signal)
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.process.take().context("evenkeel does not run")?.succeed(self.patience)
    }

    /// `evenkeel stop --detach`: leaves nothing in the kernel.
    pub fn stop_detach(&mut self) -> Result<()> {
        self.done(&["stop", "--detach"])?;
        if let Some(mut process) = self.process.take() {
            process.succeed(self.patience)?;
        }
        Ok(())
    }

    /// The file that the daemon's standard error goes to.
    pub fn log_file(&self) -> PathBuf {
        self.host.log("evenkeel")
    }

    /// What the daemon has printed since it was last started.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Whether the daemon still runs. If it has ended by itself, that is a failure.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Runs any command of the command line with the daemon's socket.
    pub fn command(&self, args: &[&str]) -> Result<Answer> {
        self.command_of(&self.binary, args)
    }

    /// The same with another binary than the daemon's.
    pub fn command_of(&self, program: &Path, args: &[&str]) -> Result<Answer> {
        let mut command = self.host.command(program);
        let output = command.args(args).env("EVENKEEL_SOCKET", self.socket()).output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Answer { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) })
    }

    /// Starts a command that runs next to the daemon until the guard is dropped.
    pub fn client(&self, args: &[&str]) -> Result<Process> {
        let mut command = self.host.command(binaries::evenkeel()?);
        self.host.start(&args.join("-"), command.args(args).env("EVENKEEL_SOCKET", self.socket()))
    }

    /// Starts a command that takes a while; its output can be read line by line.
    pub fn begin(&self, args: &[&str]) -> Result<(Process, Talk)> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("command{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut command = self.host.command(binaries::evenkeel()?);
        command.args(args).env("EVENKEEL_SOCKET", self.socket());
        Process::start_talking(&name, &mut command, &self.host.log(&name))
    }

    /// Runs a command that has to exit with 0, and returns what it printed.
    pub fn done(&self, args: &[&str]) -> Result<String> {
        let answer = self.command(args)?;
        if answer.code != 0 {
            bail!("evenkeel {}: exit {}\n{}{}", args.join(" "), answer.code, answer.out, answer.err);
        }
        Ok(answer.out)
    }

    /// Runs a command with `-o json`.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let out = self.done(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&out).with_context(|| out)
    }

    pub fn status(&self) -> Result<Value> {
        self.json(&["status"])
    }

    pub fn backends(&self) -> Result<Vec<Backend>> {
        Ok(serde_json::from_value(self.json(&["backends"])?)?)
    }

    pub fn backend(&self, name: &str) -> Result<Backend> {
        self.backends()?.into_iter().find(|backend| backend.name == name).with_context(|| format!("no backend {name}"))
    }

    pub fn counter(&self, reason: &str) -> Result<u64> {
        let counters = self.json(&["counters"])?;
        counters[reason].as_u64().with_context(|| format!("no counter {reason} in {counters}"))
    }

    /// Waits until each backend has this many active connections.
    pub fn wait_active(&self, wanted: &[(&str, u64)], limit: Duration) -> Result<()> {
        let stands = || {
            let all = self.backends().ok()?;
            let is = |(name, active): &(&str, u64)| all.iter().any(|b| b.name == *name && b.active == *active);
            wanted.iter().all(is).then_some(())
        };
        wait::until(&format!("active connections {wanted:?}"), limit, stands)
            .map_err(|late| late.context(format!("{:?}", self.backends())))
    }
}

/// A backend as the command line prints it.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Backend {
    pub service: String,
    pub name: String,
    pub address: String,
    pub state: String,
    pub reason: Option<String>,
    pub weight: u64,
    pub active: u64,
    pub half_open: u64,
    pub total: u64,
    pub connect_failures: u64,
    pub resets: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// A `[[service]]` table in TOML with the lab's backends.
#[derive(Clone, Debug)]
pub struct Service {
    /// Lines of the service's own table: `key = value`.
    pub lines: Vec<String>,
    /// Lines of `[service.health]`; empty: no probe.
    pub health: Vec<String>,
    /// The name, the address and more lines of each backend.
    pub backends: Vec<(String, std::net::Ipv4Addr, Vec<String>)>,
}

impl Service {
    /// All backends of the lab behind VIP:6443, with every key except the datapath at its default.
    pub fn new(lab: &Lab, datapath: &str) -> Self {
        let lines = vec![
            "name = \"kube-apiserver\"".to_owned(),
            format!("listen = \"{VIP}:{PORT}\""),
            format!("datapath = \"{datapath}\""),
        ];
        let backends = lab.backends.iter().map(|host| (host.name.to_string(), host.address(), Vec::new()));
        let mut service = Self { lines, health: Vec::new(), backends: backends.collect() };
        if lab.back_switch.is_some() && lab.router.is_none() {
            service = service.line("interface = [\"eth0\", \"eth1\"]");
        }
        service
    }

    /// Adds a line to the service, such as `connect_timeout = "1s"`.
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// Adds a line to `[service.health]`, such as `interval = "1s"`.
    pub fn probe(mut self, line: &str) -> Self {
        self.health.push(line.to_owned());
        self
    }

    /// Adds a line to one of the backends, such as `weight = 3`.
    pub fn backend_line(mut self, backend: usize, line: &str) -> Self {
        self.backends[backend].2.push(line.to_owned());
        self
    }

    pub fn toml(&self) -> String {
        let mut text = format!("[[service]]\n{}\n", self.lines.join("\n"));
        if !self.health.is_empty() {
            text += &format!("\n[service.health]\n{}\n", self.health.join("\n"));
        }
        for (name, address, lines) in &self.backends {
            text += &format!(
                "\n[[service.backend]]\nname = \"{name}\"\naddress = \"{address}:{PORT}\"\n{}\n",
                lines.join("\n")
            );
        }
        text
    }
}

/// Runs `kubectl` on a host with the lab's kubeconfig.
pub fn kubectl(host: &Host, args: &[&str]) -> Result<String> {
    let mut command = host.command(binaries::kubectl()?);
    // Its caches belong in the lab.
    command.env("HOME", host.folder()).arg("--kubeconfig").arg(host.folder().join(crate::pki::KUBECONFIG));
    process::output(command.args(args))
}
