//! The BPF file system, where pins outlive the process.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Where systemd mounts it. Nothing can be created below /sys/fs/bpf without a mount, so the mount
/// has to be exactly there.
const USUAL: &str = "/sys/fs/bpf";
/// The file system type of a bpffs in statfs(2).
const BPF_FS: libc::__fsword_t = libc::BPF_FS_MAGIC;

/// Whether `path`, or its nearest existing parent, lies on a mounted bpffs.
pub fn is_bpffs(path: &Path) -> bool {
    nearest_existing(path).is_some_and(|path| file_system(&path).is_ok_and(|magic| magic == BPF_FS))
}

/// How long the mount lives that pins are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as the host: process 1 has it too.
    Host,
    /// As long as this process and those that share its mounts.
    Process,
    /// It cannot be looked at; why.
    Unknown(&'static str),
}

/// How long the bpffs lives that `path` lies on.
pub fn lifetime(path: &Path) -> Result<Lifetime> {
    let place = nearest_existing(path).unwrap_or_else(|| PathBuf::from("/"));
    let device = fs::metadata(&place).with_context(|| format!("cannot look at {}", place.display()))?.dev();
    let Ok(mounts) = fs::read_to_string("/proc/1/mountinfo") else {
        return Ok(Lifetime::Unknown("the mounts of process 1 cannot be read"));
    };
    if !has_device(&mounts, libc::major(device), libc::minor(device)) {
        return Ok(Lifetime::Process);
    }
    match fs::read_link("/proc/self/ns/pid") {
        Ok(name) if name == Path::new(FIRST_PID_NAMESPACE) => Ok(Lifetime::Host),
        _ => Ok(Lifetime::Unknown("in a container, process 1 is not the host's")),
    }
}

/// The namespace that process numbers have at boot: its inode is fixed (include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Whether mountinfo (proc_pid_mountinfo(5)) lists a mount of this device: each bpffs has its own.
fn has_device(mounts: &str, major: u32, minor: u32) -> bool {
    let wanted = format!("{major}:{minor}");
    mounts.lines().any(|line| line.split(' ').nth(2) == Some(&wanted))
}

/// Mounts a bpffs for `path` for this process and those that share its mounts.
pub fn mount_private_bpffs(path: &Path) -> Result<()> {
    let place = mount_point(path);
    make_and_mount(&place).with_context(|| format!("cannot mount a bpffs at {}", place.display()))
}

/// Mounts a bpffs for `path` on the host's side, that is in the mount namespace of process 1, so
/// that it outlives this process even where this process has its own mounts (`ip netns exec`, a
/// unit's private mounts). Does nothing if `path` already lies on one.
pub fn mount_bpffs(path: &Path) -> Result<()> {
    if is_bpffs(path) {
        return Ok(());
    }
    let place = mount_point(path);
    on_the_hosts_side(move || make_and_mount(&place))
        .with_context(|| format!("cannot mount a bpffs at {}", mount_point(path).display()))?;
    if !is_bpffs(path) {
        bail!(
            "a bpffs was mounted at {} on the host's side, but this process does not see it because it has mounts of its \
             own (start it with `nsenter --net=...` instead of `ip netns exec`)",
            mount_point(path).display()
        );
    }
    Ok(())
}

/// Unmounts the bpffs at `path`, if `path` itself is a mount point, on the host's side.
pub fn unmount_bpffs(path: &Path) -> Result<()> {
    let place = path.to_owned();
    on_the_hosts_side(move || unmount(&place)).with_context(|| format!("cannot unmount {}", path.display()))
}

fn mount_point(path: &Path) -> PathBuf {
    if path.starts_with(USUAL) { PathBuf::from(USUAL) } else { path.to_owned() }
}

fn nearest_existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|path| path.exists()).map(Path::to_owned)
}

fn file_system(path: &Path) -> io::Result<libc::__fsword_t> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut status = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `path` is a C string and `status` is room for one statfs; both live through the call.
    if unsafe { libc::statfs(path.as_ptr(), status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled by the call, and valid for all bit patterns in any case (zeroed above).
    Ok(unsafe { status.assume_init() }.f_type)
}

fn make_and_mount(place: &Path) -> io::Result<()> {
    fs::create_dir_all(place)?;
    if file_system(place)? == BPF_FS {
        return Ok(());
    }
    let target = CString::new(place.as_os_str().as_bytes())?;
    // SAFETY: all pointers are C strings that live through the call, or null where the call allows
    // it.
    let result =
        unsafe { libc::mount(c"bpffs".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, c"mode=0700".as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn unmount(place: &Path) -> io::Result<()> {
    let target = CString::new(place.as_os_str().as_bytes())?;
    // SAFETY: `target` is a C string that lives through the call.
    let result = unsafe { libc::umount2(target.as_ptr(), libc::UMOUNT_NOFOLLOW) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs `work` on a separate thread that has joined the mount namespace of process 1: a thread that
/// shares its root and working directory with others may not change namespaces (setns(2)).
fn on_the_hosts_side(work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let join = || -> io::Result<()> {
        let namespace = match File::open("/proc/1/ns/mnt") {
            Ok(namespace) => namespace,
            // In a container we may not join process 1, and its mounts are the ones we have.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return work(),
            Err(error) => return Err(error),
        };
        // SAFETY: neither call takes pointers; both concern this thread only, which ends with
        // `work`.
        let result = unsafe {
            if libc::unshare(libc::CLONE_FS) == 0 { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) } else { -1 }
        };
        if result == 0 { work() } else { Err(io::Error::last_os_error()) }
    };
    std::thread::scope(|scope| scope.spawn(join).join()).map_err(|_| io::Error::other("the thread died"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_sys_fs_bpf_the_mount_goes_to_its_usual_place() {
        assert_eq!(mount_point(Path::new("/sys/fs/bpf/evenkeel")), Path::new("/sys/fs/bpf"));
        assert_eq!(mount_point(Path::new("/run/lab/bpf")), Path::new("/run/lab/bpf"));
    }

    #[test]
    fn a_mount_is_found_by_its_device_whatever_its_place() {
        let mounts = "22 27 0:21 / /proc rw,relatime - proc proc rw\n48 23 0:39 / /elsewhere rw - bpf 0:40 rw\n";
        assert!(has_device(mounts, 0, 39));
        assert!(!has_device(mounts, 0, 3));
        assert!(!has_device(mounts, 0, 40));
    }

    #[test]
    fn an_ordinary_folder_is_no_bpffs() {
        assert!(!is_bpffs(Path::new("/proc/self/no/such/folder")));
        assert!(!is_bpffs(Path::new("/tmp")));
    }
}
