//! A build without compression: the same names, and nothing is ever agreed that would use them.

use crate::protocol::ProtocolError;

use super::Bounds;

/// What the connections of one thread share: nothing.
#[derive(Debug)]
pub struct Codec(());

/// An inflater that cannot be.
#[derive(Debug)]
pub enum Inflater {}

/// A deflater that cannot be.
#[derive(Debug)]
pub enum Deflater {}

#[allow(
    missing_docs,
    clippy::boxed_local,
    clippy::unused_self,
    reason = "see `whole.rs`"
)]
impl Codec {
    pub fn new(_nonce: [u8; 16]) -> Self {
        Self(())
    }

    pub fn take_output(&mut self) -> Vec<u8> {
        Vec::new()
    }

    pub fn put_output(&mut self, _output: Vec<u8>) {}

    pub fn take_deflated(&mut self) -> Vec<u8> {
        Vec::new()
    }

    pub fn put_deflated(&mut self, _deflated: Vec<u8>) {}

    pub fn take_inflater(&mut self) -> Box<Inflater> {
        unreachable!("no connection of this build is compressed")
    }

    pub fn put_inflater(&mut self, inflater: Box<Inflater>) {
        match *inflater {}
    }

    pub fn inflate(
        &mut self,
        _payload: &[u8],
        _bounds: Bounds,
        _output: &mut Vec<u8>,
    ) -> Result<usize, ProtocolError> {
        Err(ProtocolError::Deflate)
    }

    pub fn deflate(
        &mut self,
        _payload: &[u8],
        _level: u8,
        _window_bits: u8,
        _output: &mut Vec<u8>,
    ) -> Option<usize> {
        None
    }
}

#[allow(missing_docs, reason = "see `inflater.rs`")]
impl Inflater {
    pub const MEMORY_LEN: usize = 0;

    pub fn new(_window_bits: u8) -> Self {
        unreachable!("no connection of this build is compressed")
    }

    pub fn reset(&mut self) {
        match *self {}
    }

    pub fn announce(&mut self, _len: usize, _is_text: bool) {
        match *self {}
    }

    pub fn message_len(&self) -> usize {
        match *self {}
    }

    pub fn inflate(
        &mut self,
        _input: &mut &[u8],
        _is_last: bool,
        _bounds: Bounds,
        _output: &mut [u8],
    ) -> Result<(usize, bool), ProtocolError> {
        match *self {}
    }
}

#[allow(missing_docs, reason = "see `deflater.rs`")]
impl Deflater {
    pub fn memory_len(_window_bits: u8, _mem: u8) -> usize {
        0
    }

    pub fn new(_level: u8, _window_bits: u8, _mem: u8) -> Self {
        unreachable!("no connection of this build is compressed")
    }

    pub fn forget(&mut self) {
        match *self {}
    }

    pub fn deflate(&mut self, _payload: &[u8], _output: &mut Vec<u8>) -> Option<usize> {
        match *self {}
    }
}
