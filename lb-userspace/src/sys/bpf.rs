//! The two BPF commands that aya does not offer, or not in the form needed.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// `union bpf_attr` for BPF_MAP_DELETE_ELEM (linux/bpf.h): the part that the command reads.
#[repr(C)]
struct DeleteElement {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_DELETE_ELEM: libc::c_int = 3;

/// Takes the inner map at `index` out of an array of maps; its memory is freed when nobody uses it any more.
pub fn delete_inner_map(array_of_maps: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let attributes = DeleteElement {
        map_fd: array_of_maps.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const index) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: the attributes and the key they point to live through the call; the kernel reads `size_of` bytes and writes
    // nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_DELETE_ELEM, &raw const attributes, size_of::<DeleteElement>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The part of `union bpf_attr` for BPF_MAP_CREATE (linux/bpf.h) that an array needs.
#[repr(C)]
struct CreateMap {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// Makes an array of `entries` values of `value_size` bytes. `name` is cut to 15 bytes.
pub fn create_array(name: &str, value_size: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = CreateMap {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size,
        max_entries: entries,
        map_flags: flags,
        inner_map_fd: 0,
        numa_node: 0,
        name: [0; 16],
    };
    for (to, from) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the attributes live through the call; the kernel reads `size_of` bytes and writes nothing.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, &raw const attributes, size_of::<CreateMap>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
