//! What the kernel says about one network interface, by ioctl: `/sys/class/net` may show another
//! network namespace than that of this process.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// An interface as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The kernel's index for it.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Whether it carries Ethernet frames.
    pub ethernet: bool,
    /// Its driver and the bus on which the driver found it; empty for devices without a driver
    /// (many virtual ones).
    pub driver: Driver,
}

/// The driver of an interface (`ethtool -i`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// `driver:` of `ethtool -i`.
    pub name: String,
    /// `bus-info:` of `ethtool -i`.
    pub bus: String,
}

/// Looks an interface up by its name.
pub fn by_name(name: &str) -> io::Result<Device> {
    let socket = control_socket()?;
    let ifindex = index_of(name)?;
    let hardware = hardware_address(&socket, name)?;
    let driver = driver(&socket, name).unwrap_or_default();
    Ok(Device { name: name.to_owned(), ifindex, mac: hardware.1, ethernet: hardware.0 == libc::ARPHRD_ETHER, driver })
}

/// The index of the interface with this name.
pub fn index_of(name: &str) -> io::Result<u32> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: `name` is a C string that lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        ifindex => Ok(ifindex),
    }
}

/// The name of the interface with this index.
pub fn name_of(ifindex: u32) -> io::Result<String> {
    let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
    // SAFETY: `name` has the IF_NAMESIZE bytes that the call may write.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    if found.is_null() {
        return Err(io::Error::last_os_error());
    }
    Ok(text(&name))
}

fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just opened, owned by nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn hardware_address(socket: &OwnedFd, name: &str) -> io::Result<(u16, [u8; 6])> {
    let mut request = request(name)?;
    // SAFETY: SIOCGIFHWADDR reads and writes one ifreq (netdevice(7)).
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call filled this member of the union, and all of them are plain data.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address.sa_data) {
        *to = from as u8;
    }
    Ok((address.sa_family, mac))
}

/// The most bytes of an IP packet that an interface takes.
pub fn mtu(name: &str) -> io::Result<u32> {
    let socket = control_socket()?;
    let mut request = request(name)?;
    // SAFETY: SIOCGIFMTU reads and writes one ifreq (netdevice(7)).
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call filled this member of the union, and all of them are plain data.
    Ok(unsafe { request.ifr_ifru.ifru_mtu }.max(0).cast_unsigned())
}

/// `struct ethtool_drvinfo` (linux/ethtool.h).
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [libc::c_char; 32],
    version: [libc::c_char; 32],
    firmware: [libc::c_char; 32],
    bus: [libc::c_char; 32],
    rest: [u8; 32 + 12 + 5 * 4],
}

const ETHTOOL_GDRVINFO: u32 = 3;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

fn driver(socket: &OwnedFd, name: &str) -> io::Result<Driver> {
    // SAFETY: plain data for which zeros are valid.
    let mut info: DriverInfo = unsafe { std::mem::zeroed() };
    info.command = ETHTOOL_GDRVINFO;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: with this command the kernel writes one ethtool_drvinfo to `ifru_data`, for which
    // `info` has room (size asserted below); both live through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Driver { name: text(&info.driver), bus: text(&info.bus) })
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// The driver of bonds.
const BOND: &str = "bonding";

/// `struct ifbond` (linux/if_bonding.h).
#[repr(C)]
struct BondInfo {
    mode: i32,
    members: i32,
    miimon: i32,
}

/// `struct ifslave` (linux/if_bonding.h).
#[repr(C)]
struct BondMember {
    id: i32,
    name: [libc::c_char; libc::IF_NAMESIZE],
    link: i8,
    state: i8,
    failures: u32,
}

const _: () = assert!(size_of::<BondInfo>() == 12 && size_of::<BondMember>() == 28);

const SIOCBONDSLAVEINFOQUERY: libc::c_ulong = 0x8993;
const SIOCBONDINFOQUERY: libc::c_ulong = 0x8994;

/// The indexes of a bond's members; none for any other device, or for one that is gone.
pub fn members(ifindex: u32) -> io::Result<Vec<u32>> {
    let socket = control_socket()?;
    let Ok(bond) = name_of(ifindex) else { return Ok(Vec::new()) };
    if driver(&socket, &bond).unwrap_or_default().name != BOND {
        return Ok(Vec::new());
    }
    let mut info = BondInfo { mode: 0, members: 0, miimon: 0 };
    ask_bond(&socket, &bond, SIOCBONDINFOQUERY, &mut info)?;
    Ok(readable(info.members, |id| {
        let mut member = BondMember { id, name: [0; libc::IF_NAMESIZE], link: 0, state: 0, failures: 0 };
        ask_bond(&socket, &bond, SIOCBONDSLAVEINFOQUERY, &mut member)?;
        index_of(&text(&member.name))
    }))
}

/// The members that can be read: one that cannot has left since they were counted.
fn readable(count: i32, read: impl Fn(i32) -> io::Result<u32>) -> Vec<u32> {
    (0..count).filter_map(|id| read(id).ok()).collect()
}

/// `answer` is the structure of the question.
fn ask_bond<T>(socket: &OwnedFd, bond: &str, question: libc::c_ulong, answer: &mut T) -> io::Result<()> {
    let mut request = request(bond)?;
    request.ifr_ifru.ifru_data = (&raw mut *answer).cast();
    // SAFETY: with these questions the kernel reads and writes one ifbond or ifslave at `ifru_data`;
    // `answer` is that structure (sizes asserted above) and lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), question as _, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The text up to the first zero, or all of it.
fn text(chars: &[libc::c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|char| *char as u8).chain([0]).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_known_and_has_no_driver() {
        let device = by_name("lo").unwrap();
        assert_eq!((device.ifindex, device.mac, device.ethernet), (index_of("lo").unwrap(), [0; 6], false));
        assert_eq!(device.driver, Driver::default());
        assert_eq!(name_of(device.ifindex).unwrap(), "lo");
    }

    #[test]
    fn a_member_that_leaves_while_the_members_are_read_is_none() {
        let read = |id: i32| if id == 1 { Err(io::Error::from_raw_os_error(libc::ENODEV)) } else { Ok(10 + id as u32) };
        assert_eq!(readable(3, read), [10, 12]);
        assert!(readable(0, read).is_empty());
    }

    #[test]
    fn what_is_no_bond_or_is_gone_has_no_members() {
        assert!(members(index_of("lo").unwrap()).unwrap().is_empty());
        assert!(members(u32::MAX >> 1).unwrap().is_empty());
    }

    #[test]
    fn an_interface_that_does_not_exist_is_an_error() {
        assert!(by_name("no-such-dev").is_err());
        assert!(by_name("a-name-too-long-for-an-interface").is_err());
        assert!(name_of(u32::MAX >> 1).is_err());
    }
}
