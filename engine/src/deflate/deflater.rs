use std::fmt;

use zlib_rs::Deflate;
use zlib_rs::DeflateConfig;
use zlib_rs::DeflateFlush;
use zlib_rs::Status;

use super::TAIL;

/// What a message ends with, besides what [`zlib_rs::compress_bound`] says of a whole stream.
const SLACK: usize = 64;

/// Deflates messages with the window that earlier messages have left, or without.
pub struct Deflater {
    stream: Deflate,
    /// The window is not what the peer has: it is not to be used.
    stale: bool,
}

impl Deflater {
    /// Bytes of memory that one takes: what `zlib-rs` 0.6 allocates.
    pub fn memory_len(window_bits: u8, mem: u8) -> usize {
        (132 * 1024) + (4 << window_bits) + (7 << (mem + 6))
    }

    /// With a window of two to this power, 9 to 15; level 1 to 9, memory level 1 to 9.
    pub fn new(level: u8, window_bits: u8, mem: u8) -> Self {
        debug_assert!((9..=15).contains(&window_bits), "zlib makes 9 bits of 8");
        Self {
            stream: Deflate::new_with_config(DeflateConfig {
                level: level.into(),
                window_bits: -i32::from(window_bits),
                mem_level: mem.into(),
                ..DeflateConfig::default()
            }),
            stale: false,
        }
    }

    /// The peer has received something else: the next message refers to nothing before it.
    pub fn forget(&mut self) {
        self.stale = true;
    }

    /// Deflates a message; gives how much of `output` that is, or none if it has not become
    /// shorter. `output` is made as long as is necessary.
    pub fn deflate(&mut self, payload: &[u8], output: &mut Vec<u8>) -> Option<usize> {
        if std::mem::take(&mut self.stale) {
            self.stream.reset();
        }
        // Room for whatever becomes of it, also for what is then not used: where there is less,
        // level 1 of zlib-rs 0.6.8 panics ("buf.len() must fit in remaining()").
        let len_max = zlib_rs::compress_bound(payload.len()) + SLACK;
        if output.len() < len_max {
            output.resize(len_max, 0);
        }
        let before = (self.stream.total_in(), self.stream.total_out());
        let output = &mut output[..len_max];
        let status = self
            .stream
            .compress(payload, output, DeflateFlush::SyncFlush);
        let used = (self.stream.total_in() - before.0) as usize;
        let made = (self.stream.total_out() - before.1) as usize;
        let whole = status == Ok(Status::Ok) && used == payload.len() && made < len_max;
        let is_shorter = made < payload.len() + TAIL.len();
        if !whole || !is_shorter || !output[..made].ends_with(&TAIL) {
            self.stale = true;
            return None;
        }
        Some(made - TAIL.len())
    }
}

impl fmt::Debug for Deflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deflater")
            .field("stale", &self.stale)
            .finish_non_exhaustive()
    }
}
