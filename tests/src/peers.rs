//! nginx and HAProxy on the lab's balancer, as people run them in front of kube-apiserver: what
//! evenkeel is compared with. Each listens on its own port of the VIP, so that all of them run side
//! by side.

use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    Lab, Process,
    topology::{PORT, VIP},
    wait,
};

/// The port of nginx.
pub const NGINX_PORT: u16 = 7443;
/// The port of HAProxy.
pub const HAPROXY_PORT: u16 = 8443;

const START: Duration = Duration::from_secs(10);

/// nginx's usual `log_format` for `stream`.
const USUAL: &str = r#"$remote_addr [$time_local] $protocol $status $bytes_sent $bytes_received $session_time "$upstream_addr" "$upstream_connect_time""#;

/// nginx with the configuration that evenkeel replaces: stream, least_conn, two tries.
pub fn nginx(lab: &Lab) -> Result<Process> {
    nginx_logging(lab, USUAL)
}

/// The path of nginx's access log.
pub fn nginx_log(lab: &Lab) -> PathBuf {
    lab.folder().join("nginx/access.log")
}

/// The same with another `log_format`.
pub fn nginx_logging(lab: &Lab, format: &str) -> Result<Process> {
    let servers = servers(lab, |_, address| format!("server {address} max_fails=3 fail_timeout=10s;\n"));
    let folder = folder(lab, "nginx")?;
    let here = folder.display();
    let config = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
user root;
pid {here}/pid;
error_log {here}/error.log;
worker_processes auto;
events {{ worker_connections 4096; }}
stream {{
  log_format main '{format}';
  access_log {here}/access.log main;
  upstream apiservers {{
    least_conn;
    {servers}  }}
  server {{
    listen {VIP}:{NGINX_PORT};
    proxy_pass apiservers;
    proxy_connect_timeout 2s;
    proxy_timeout 10m;
    proxy_next_upstream on;
    proxy_next_upstream_tries 2;
  }}
}}
"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config).with_context(|| file.display().to_string())?;
    let mut command = lab.balancer.command("nginx");
    command.arg("-p").arg(&folder).arg("-c").arg(&file).args(["-e", "stderr"]);
    listening(lab, NGINX_PORT, lab.balancer.start("nginx", &mut command)?)
}

/// HAProxy with the configuration of kubeadm's guide to highly available control planes, including
/// its checks over TLS.
pub fn haproxy(lab: &Lab) -> Result<Process> {
    let servers = servers(lab, |name, address| format!("  server {name} {address} check verify none\n"));
    let folder = folder(lab, "haproxy")?;
    let config = format!(
        "global
  maxconn 4000
defaults
  mode tcp
  option redispatch
  retries 1
  timeout connect 5s
  timeout client 35s
  timeout server 35s
  timeout check 10s
frontend apiserver
  bind {VIP}:{HAPROXY_PORT}
  mode tcp
  default_backend apiservers
backend apiservers
  option httpchk
  http-check connect ssl
  http-check send meth GET uri /healthz
  http-check expect status 200
  mode tcp
  balance roundrobin
{servers}"
    );
    let file = folder.join("haproxy.cfg");
    fs::write(&file, config).with_context(|| file.display().to_string())?;
    let mut command = lab.balancer.command("haproxy");
    command.args(["-db", "-f"]).arg(&file);
    listening(lab, HAPROXY_PORT, lab.balancer.start("haproxy", &mut command)?)
}

fn servers(lab: &Lab, line: impl Fn(&str, &str) -> String) -> String {
    lab.backends.iter().fold(String::new(), |mut all, host| {
        // Writing to a String cannot fail.
        _ = write!(all, "{}", line(&host.name, &format!("{}:{PORT}", host.address())));
        all
    })
}

fn folder(lab: &Lab, name: &str) -> Result<PathBuf> {
    let folder = lab.folder().join(name);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// Waits until the kernel lists the listening socket.
fn listening(lab: &Lab, port: u16, mut process: Process) -> Result<Process> {
    let socket = format!("{VIP}:{port}");
    let listens = || lab.balancer.run("ss", &["-Hltn"]).is_ok_and(|sockets| sockets.contains(&socket));
    let state = wait::until(&format!("something listens at {socket}"), START, || {
        if process.is_running() { listens().then_some(true) } else { Some(false) }
    });
    match state {
        Ok(true) => Ok(process),
        Ok(false) => bail!("it ended while starting:\n{}", process.log()),
        Err(late) => Err(late.context(process.log())),
    }
}
