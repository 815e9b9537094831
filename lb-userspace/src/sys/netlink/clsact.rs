//! The clsact queueing discipline, to which TC programs are attached before Linux 6.6.

use anyhow::{Context, Result, anyhow};
use futures_util::TryStreamExt;
use rtnetlink::{Handle, packet_route::tc::TcHandle};

use super::wire::patiently;

/// Removes the clsact queueing discipline from an interface unless it has filters: then somebody
/// else uses it. Returns whether it was removed. Runs on a separate thread, so that it can be
/// called from anywhere.
pub fn remove_unused_clsact(ifindex: u32) -> Result<bool> {
    let asked = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
            tokio::spawn(connection);
            remove(&handle, i32::try_from(ifindex)?).await
        })
    });
    asked.join().map_err(|_| anyhow!("the thread died"))?
}

async fn remove(handle: &Handle, ifindex: i32) -> Result<bool> {
    let filters = || handle.traffic_filter(ifindex).get();
    for hook in [filters().ingress(), filters().egress()] {
        let mut filters = std::pin::pin!(hook.execute());
        if patiently(filters.try_next()).await?.context("cannot list filters")?.is_some() {
            return Ok(false);
        }
    }
    let mut removal = handle.qdisc().del(ifindex);
    let header = &mut removal.message_mut().header;
    (header.parent, header.handle) = (TcHandle::CLSACT, TcHandle { major: 0xffff, minor: 0 });
    patiently(removal.execute()).await?.context("cannot remove it")?;
    Ok(true)
}
