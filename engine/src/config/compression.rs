use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::ConfigError;
use crate::http1::Request;
use crate::protocol::handshake::DeflateParams;

/// Bytes that context takeover may take on a thread, if nothing else is said.
pub const COMPRESSION_BUDGET: usize = 64 * 1024 * 1024;

/// From which length on messages are compressed, without context takeover and with it: shorter
/// ones do not become shorter, or not enough to pay for it.
const LEN_MIN_SHARED: usize = 512;
const LEN_MIN_DEDICATED: usize = 128;

/// The fastest level.
const LEVEL: u8 = 1;

/// Whether messages are compressed (permessage-deflate, RFC 7692), and what a connection keeps
/// for it.
///
/// A connection is compressed if its peer offers it, or agrees to it; then messages that the peer
/// has compressed are inflated as they come, and messages of at least 512 bytes (128 with context
/// takeover) are compressed as they are sent, if they become shorter by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(feature = "deflate"), allow(dead_code))]
#[non_exhaustive]
pub enum Compression {
    /// No message is compressed.
    #[default]
    Off,
    /// Each message by itself (`server_no_context_takeover`, `client_no_context_takeover`): a
    /// connection keeps nothing, all of a thread share what it takes.
    Shared,
    /// A message may refer to those before it (context takeover), which makes short and similar
    /// messages much shorter. Each connection keeps its windows: about 48 KiB to receive, and
    /// 132 KiB + 2^(`window_bits` + 2) + 7 × 2^(`mem` + 6) bytes to send, from its first
    /// compressed message on; granted from a budget of the thread
    /// (`Builder::compression_budget`), and `Shared` where that is used up.
    Dedicated {
        /// The largest window, as a power of two: 9 to 15.
        window_bits: u8,
        /// How much memory the compressor takes besides, 1 to 9; it compresses somewhat better
        /// with more.
        mem: u8,
    },
}

impl Compression {
    /// What an endpoint that wants this offers, or agrees to; none if it is off.
    pub(crate) fn params(self) -> Option<DeflateParams> {
        match self {
            Self::Off => None,
            Self::Shared => Some(DeflateParams {
                server_no_context_takeover: true,
                client_no_context_takeover: true,
                ..DeflateParams::default()
            }),
            Self::Dedicated { window_bits, .. } => Some(DeflateParams {
                server_max_window_bits: window_bits,
                client_max_window_bits: window_bits,
                ..DeflateParams::default()
            }),
        }
    }

    /// The memory level of a compressor of its own.
    pub(crate) fn mem(self) -> u8 {
        match self {
            Self::Dedicated { mem, .. } => mem,
            // Where it has been agreed elsewhere.
            _ => 8,
        }
    }

    /// # Errors
    /// A window or a memory level that there is not.
    pub(crate) fn validate(self) -> Result<(), ConfigError> {
        if let Self::Dedicated { window_bits, mem } = self {
            // zlib makes 9 bits of 8, whatever it is asked for.
            if !(9..=15).contains(&window_bits) {
                return Err(ConfigError::Limit("window_bits is not 9 to 15"));
            }
            if !(1..=9).contains(&mem) {
                return Err(ConfigError::Limit("mem is not 1 to 9"));
            }
        }
        Ok(())
    }
}

/// `off`, `shared`, `dedicated`, or `dedicated:WINDOW_BITS:MEM`; `dedicated` alone has the largest
/// window and a memory level of 8.
impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let dedicated = |rest: &str| {
            let (window_bits, mem) = rest.split_once(':')?;
            let mode = Self::Dedicated {
                window_bits: window_bits.parse().ok()?,
                mem: mem.parse().ok()?,
            };
            mode.validate().ok().map(|()| mode)
        };
        let mode = match text.split_once(':') {
            None if text == "off" => Some(Self::Off),
            None if text == "shared" => Some(Self::Shared),
            None if text == "dedicated" => dedicated("15:8"),
            Some(("dedicated", rest)) => dedicated(rest),
            _ => None,
        };
        let wanted = "wanted off, shared, dedicated or dedicated:WINDOW_BITS:MEM (9-15, 1-9)";
        mode.ok_or_else(|| format!("no compression {text:?}: {wanted}"))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Shared => f.write_str("shared"),
            Self::Dedicated { window_bits, mem } => write!(f, "dedicated:{window_bits}:{mem}"),
        }
    }
}

/// What a route says of compression.
#[derive(Clone)]
pub(crate) struct CompressionSettings {
    pub(crate) mode: Compression,
    /// 1 to 9.
    pub(crate) level: u8,
    pub(crate) len_min: Option<usize>,
    pub(crate) check: Option<CompressionFn>,
}

/// Decides whether a client's messages may be compressed.
pub type CompressionFn = Arc<dyn Fn(&Request<'_>) -> bool + Send + Sync>;

impl Default for CompressionSettings {
    fn default() -> Self {
        Self {
            mode: Compression::Off,
            level: LEVEL,
            len_min: None,
            check: None,
        }
    }
}

impl CompressionSettings {
    /// What this request is to be answered with; none if nothing is to be compressed.
    pub(crate) fn params_for(&self, request: &Request<'_>) -> Option<DeflateParams> {
        let params = self.mode.params()?;
        let allowed = self.check.as_ref().is_none_or(|check| check(request));
        allowed.then_some(params)
    }

    /// The shortest message that is compressed.
    pub(crate) fn len_min(&self, takeover: bool) -> usize {
        self.len_min.unwrap_or(match takeover {
            false => LEN_MIN_SHARED,
            true => LEN_MIN_DEDICATED,
        })
    }

    /// # Errors
    /// The first value that makes no sense, and why.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        self.mode.validate()?;
        if !(1..=9).contains(&self.level) {
            return Err(ConfigError::Limit("compression_level is not 1 to 9"));
        }
        Ok(())
    }
}

impl fmt::Debug for CompressionSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompressionSettings")
            .field("mode", &self.mode)
            .field("level", &self.level)
            .field("len_min", &self.len_min)
            .field("check", &self.check.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_written_as_they_are_read() {
        for text in ["off", "shared", "dedicated:9:1", "dedicated:15:9"] {
            let mode: Compression = text.parse().expect(text);
            assert_eq!(mode.to_string(), text);
        }
        let full: Compression = "dedicated".parse().expect("it is a mode");
        assert_eq!(full.to_string(), "dedicated:15:8");
        for text in [
            "",
            "on",
            "Shared",
            "shared:9:1",
            "dedicated:8:1",
            "dedicated:16:1",
            "dedicated:9:0",
            "dedicated:9:10",
            "dedicated:9",
            "dedicated::",
        ] {
            let error = text.parse::<Compression>().expect_err(text);
            assert!(error.contains("wanted off"), "{error}");
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let check = |change: fn(&mut CompressionSettings), want: &str| {
            let mut settings = CompressionSettings::default();
            settings.validate().expect("the defaults");
            change(&mut settings);
            let error = settings.validate().expect_err(want);
            assert!(error.to_string().contains(want), "{error}");
        };
        let dedicated = |window_bits, mem| Compression::Dedicated { window_bits, mem };
        assert!(dedicated(8, 8).validate().is_err());
        check(|s| s.level = 0, "compression_level");
        check(|s| s.level = 10, "compression_level");
        check(
            |s| {
                s.mode = Compression::Dedicated {
                    window_bits: 16,
                    mem: 8,
                };
            },
            "window_bits",
        );
        check(
            |s| {
                s.mode = Compression::Dedicated {
                    window_bits: 15,
                    mem: 10,
                };
            },
            "mem",
        );
    }
}
