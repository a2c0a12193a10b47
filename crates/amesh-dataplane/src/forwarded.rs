//! Who asks: `x-forwarded-for` (`Http::Utility::getLastAddressFromXFF`, `ConnectionManagerUtility`).

use crate::listener::contains;
use amesh_model::listener::ArchivedHttpConnectionManager;
use std::net::IpAddr;

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The address that counts as the client's.
    pub address: IpAddr,
    /// It comes from within the mesh, so that its `x-envoy-*` headers are believed.
    pub internal: bool,
    /// It comes from outside, and this is the first hop.
    pub edge: bool,
}

/// The client of a request with this `x-forwarded-for` (lines joined by commas) over a connection from `peer`.
pub fn client(hcm: &ArchivedHttpConnectionManager, xff: Option<&str>, peer: IpAddr) -> Client {
    let hops = hcm.xff_num_trusted_hops.to_native() as usize;
    let (address, single) = match hcm.use_remote_address {
        true => {
            let trusted = hops.checked_sub(1).and_then(|skip| last_address(xff?, skip));
            (Some(trusted.map_or(peer, |(address, _)| address)), xff.is_none())
        }
        false => match xff.and_then(|xff| last_address(xff, hops)) {
            Some((address, single)) => (Some(address), single),
            None => (None, false),
        },
    };
    let internal = single && address.is_some_and(|a| hcm.internal_addresses.iter().any(|range| contains(range, a)));
    Client { address: address.unwrap_or(peer), internal, edge: hcm.use_remote_address && !internal }
}

/// The last address but `skip`, and whether it is the only one.
fn last_address(xff: &str, skip: usize) -> Option<(IpAddr, bool)> {
    let mut addresses = xff.rsplit(',').skip(skip);
    let address = addresses.next()?.trim().parse().ok()?;
    Some((address, skip == 0 && addresses.next().is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_counts_is_found_from_the_end() {
        let one = |text: &str, skip| last_address(text, skip).map(|(a, single)| (a.to_string(), single));
        assert_eq!(one("10.0.0.1", 0), Some(("10.0.0.1".into(), true)));
        assert_eq!(one("10.0.0.1, 10.0.0.2", 0), Some(("10.0.0.2".into(), false)));
        assert_eq!(one("10.0.0.1,fd00::2", 1), Some(("10.0.0.1".into(), false)));
        assert_eq!(one("10.0.0.1", 1), None);
        assert_eq!(one("nonsense", 0), None);
        assert_eq!(one("", 0), None);
    }

    proptest::proptest! {
        #[test]
        fn anything_is_read_or_passed_over(text in "[0-9a-f.:, ]{0,40}", skip in 0usize..4) {
            let _ = last_address(&text, skip);
        }
    }
}
