//! A message, compressed: flate2 makes of it what it was.
//!
//! The first byte says how often the rest is repeated.
#![no_main]

use std::io;
use std::io::Read;
use std::io::Write;

use flate2::read::DeflateDecoder;
use libfuzzer_sys::fuzz_target;
use sockeye::Limits;
use sockeye::Message;
use sockeye::client::WebSocket;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Role;
use sockeye::protocol::handshake::DeflateParams;

/// Keeps what is sent.
struct Sent(Vec<u8>);

impl Read for Sent {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((times, piece)) = data.split_first() else {
        return;
    };
    let payload = piece.repeat(usize::from(times % 8) + 1);
    let params = DeflateParams {
        server_no_context_takeover: true,
        ..DeflateParams::default()
    };
    let limits = Limits::default();
    let ws =
        WebSocket::from_stream_deflated(Sent(Vec::new()), Role::Server, &[], &limits, &params);
    let mut ws = ws.expect("valid limits");
    ws.set_write_compression(Some(true));
    let message = Message::binary(&payload);
    ws.write_message(message).expect("memory takes it");
    let Sent(sent) = ws.get_ref();
    let (header, len) = FrameHeader::decode(sent)
        .expect("a valid header")
        .expect("a whole one");
    let sent = &sent[len..];
    assert_eq!(header.payload_len, sent.len() as u64);
    if !header.rsv1 {
        assert!(sent == payload);
        return;
    }
    assert!(sent.len() < payload.len());
    let input = [sent, b"\x00\x00\xFF\xFF\x01\x00\x00\xFF\xFF"].concat();
    let mut decoder = DeflateDecoder::new(&input[..]);
    let mut inflated = Vec::new();
    decoder.read_to_end(&mut inflated).expect("flate2 takes it");
    assert!(inflated == payload);
    assert_eq!(decoder.total_in() as usize, input.len());
});
