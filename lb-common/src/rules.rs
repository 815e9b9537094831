//! `rules`: which clients may open a connection to a service. The first rule that matches the
//! client decides, as with nginx's `allow` and `deny`; a client that no rule matches is let in.
//!
//! They are kept as the list that the operator writes, and read from the top: a list has a handful
//! of rules, at most [`MAX_RULES`](crate::layout::MAX_RULES), and is read for new connections only.
//! So it is known which rule decided, and no other structure can disagree with the list.

use crate::layout::Rule;

/// Let the client in.
pub const ALLOW: u8 = 1;
/// Keep the client out.
pub const DENY: u8 = 2;
/// [`Rule::family`] of `all`: the rule is for both families.
pub const EVERY_FAMILY: u8 = 0;

impl Rule {
    /// A rule for every client.
    pub const fn all(verdict: u8) -> Rule {
        Rule { network: [0; 16], prefix: 0, family: EVERY_FAMILY, verdict, reserved: [0; 5] }
    }

    /// A rule for an IPv4 network of `prefix` bits; its address is v4-mapped.
    pub const fn v4(verdict: u8, network: [u8; 16], prefix: u8) -> Rule {
        Rule { network, prefix, family: 4, verdict, reserved: [0; 5] }
    }

    /// A rule for an IPv6 network of `prefix` bits.
    pub const fn v6(verdict: u8, network: [u8; 16], prefix: u8) -> Rule {
        Rule { network, prefix, family: 6, verdict, reserved: [0; 5] }
    }

    /// Whether the rule is for an IPv4 client, whose address is given as in the packet.
    #[inline(always)]
    pub const fn matches_v4(&self, address: u32) -> bool {
        if self.family != 4 {
            return self.family == EVERY_FAMILY;
        }
        let [.., a, b, c, d] = self.network;
        let differing = u32::from_be(address ^ u32::from_ne_bytes([a, b, c, d]));
        // In 64 bits, so that a prefix of no bits is a shift like any other.
        (differing as u64) >> ((32 - self.prefix as u32) & 63) == 0
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::address::word;

    fn rule(network: Ipv4Addr, prefix: u8) -> Rule {
        Rule::v4(DENY, network.to_ipv6_mapped().octets(), prefix)
    }

    #[test]
    fn a_network_of_any_size_holds_its_first_and_last_address_and_neither_neighbour() {
        for prefix in 0..=32_u8 {
            let size = 1_u64 << (32 - prefix);
            for start in [0_u64, 0x0a00_0000, 0xc0a8_0000, 0x8000_0000] {
                let first = start / size * size;
                let rule = rule(Ipv4Addr::from(first as u32), prefix);
                for (address, inside) in
                    [(first, true), (first + size - 1, true), (first.wrapping_sub(1), false), (first + size, false)]
                {
                    let Ok(address) = u32::try_from(address) else { continue };
                    assert_eq!(rule.matches_v4(word(address.into())), inside, "{address:#x} in {first:#x}/{prefix}");
                }
            }
        }
    }

    #[test]
    fn all_is_for_everybody_and_ipv6_for_no_ipv4_client() {
        let client = word(Ipv4Addr::new(10, 0, 0, 1));
        assert!(Rule::all(DENY).matches_v4(client));
        assert!(!Rule::v6(DENY, [0; 16], 0).matches_v4(client), "::/0 are the IPv6 clients");
        let mapped = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
        assert!(!Rule::v6(DENY, mapped, 128).matches_v4(client));
    }
}
