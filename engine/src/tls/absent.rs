//! A build without TLS: the same names, and no value of any of them.

use std::io;

use crate::buffer::Pool;
use crate::buffer::SendQueue;

/// Settings that cannot be made in this build.
#[derive(Clone, Debug)]
pub enum ServerTls {}

/// Settings that cannot be made in this build.
#[derive(Clone, Debug)]
pub enum ClientTls {}

/// A session that cannot be.
#[derive(Debug)]
pub enum Session {}

#[allow(missing_docs, clippy::boxed_local, reason = "see `session.rs`")]
impl Session {
    pub fn server(tls: &ServerTls) -> io::Result<Self> {
        match *tls {}
    }

    pub fn client(tls: &ClientTls, _name: &str) -> io::Result<Self> {
        match *tls {}
    }

    pub fn check_name(_name: &str) -> io::Result<()> {
        Ok(())
    }

    pub fn start(&mut self, _pool: &mut Pool) -> io::Result<()> {
        match *self {}
    }

    pub fn is_fresh(&self) -> bool {
        match *self {}
    }

    pub fn is_peer_closed(&self) -> bool {
        match *self {}
    }

    pub fn can_seal(&self) -> bool {
        match *self {}
    }

    pub fn owes_close_notify(&self) -> bool {
        match *self {}
    }

    pub fn outgoing(&self) -> Option<&SendQueue> {
        match *self {}
    }

    pub fn take_outgoing(&mut self) -> Option<Box<SendQueue>> {
        match *self {}
    }

    pub fn put_outgoing(&mut self, _queue: Box<SendQueue>, _pool: &mut Pool) {
        match *self {}
    }

    pub fn queued_len(&self) -> usize {
        match *self {}
    }

    pub fn compact(&mut self, _pool: &mut Pool) {
        match *self {}
    }

    pub fn held_len(&self) -> usize {
        match *self {}
    }

    pub fn consume(&mut self, _len: usize, _pool: &mut Pool) {
        match *self {}
    }

    pub fn receive(
        &mut self,
        _input: &mut [u8],
        _plain: &mut Vec<u8>,
        _pool: &mut Pool,
    ) -> io::Result<()> {
        match *self {}
    }

    pub fn seal(
        &mut self,
        _queue: &mut SendQueue,
        _scratch: &mut Vec<u8>,
        _pool: &mut Pool,
    ) -> io::Result<()> {
        match *self {}
    }

    pub fn seal_close(&mut self, _pool: &mut Pool) -> io::Result<()> {
        match *self {}
    }

    pub fn release(self, _pool: &mut Pool) {
        match self {}
    }
}
