use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::ConfigError;

/// Proxies in front of the server, and how they say for whom they connect. What anybody else
/// says is not believed.
///
/// ```
/// use sockeye::Proxies;
/// use sockeye::Server;
///
/// # fn main() -> Result<(), sockeye::ConfigError> {
/// let proxies = Proxies::new(["10.0.0.0/8", "fd00::/8", "127.0.0.1"])?.x_forwarded_for();
/// let builder = Server::builder().proxies(proxies);
/// # let _ = builder;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Proxies {
    networks: Vec<IpNet>,
    pub(crate) source: ClientSource,
}

/// Where the address of a client is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientSource {
    /// A header of the PROXY protocol, in front of everything else.
    ProxyProtocol,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    /// `X-Forwarded-For`.
    XForwardedFor,
}

impl Proxies {
    /// Proxies at these addresses, or in these networks (`10.0.0.0/8`), that send a header of
    /// the PROXY protocol, version 1 or 2, in front of every connection. One that does not is
    /// closed.
    ///
    /// # Errors
    /// A text that is no address and no network.
    pub fn new<'a>(networks: impl IntoIterator<Item = &'a str>) -> Result<Self, ConfigError> {
        let parse = |text: &str| {
            let network = text.parse::<IpNet>();
            let network = network.or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
            network.map_err(|_| ConfigError::Network(text.to_owned()))
        };
        Ok(Self {
            networks: networks.into_iter().map(parse).collect::<Result<_, _>>()?,
            source: ClientSource::ProxyProtocol,
        })
    }

    /// They add to the header `Forwarded` (RFC 7239) instead.
    #[must_use]
    pub fn forwarded(mut self) -> Self {
        self.source = ClientSource::Forwarded;
        self
    }

    /// They add to the header `X-Forwarded-For` instead.
    #[must_use]
    pub fn x_forwarded_for(mut self) -> Self {
        self.source = ClientSource::XForwardedFor;
        self
    }

    /// Whether an address is that of a proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }
}
