//! A compressed message, cut anywhere: what comes of it is what flate2 makes of it, or an error
//! where that finds one.
//!
//! The first byte says how many bytes are received at once, and whether there is context takeover;
//! the second where the message is cut into two fragments. The rest is its payload.
#![no_main]

use std::io;
use std::io::Read;
use std::io::Write;

use flate2::read::DeflateDecoder;
use libfuzzer_sys::fuzz_target;
use sockeye::Limits;
use sockeye::client::WebSocket;
use sockeye::protocol::FrameHeader;
use sockeye::protocol::Opcode;
use sockeye::protocol::Role;
use sockeye::protocol::handshake::DeflateParams;

const LEN_MAX: usize = 1 << 16;

/// Gives its bytes some at a time, and takes whatever it is sent.
struct Stream<'a> {
    bytes: &'a [u8],
    at_once: usize,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(self.at_once).min(self.bytes.len());
        self.bytes.read(&mut buffer[..len])
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn push_frame(to: &mut Vec<u8>, fin: bool, opcode: Opcode, payload: &[u8]) {
    let header = FrameHeader {
        fin,
        rsv1: opcode != Opcode::Continuation,
        opcode,
        payload_len: payload.len() as u64,
        mask_key: None,
    };
    to.extend_from_slice(header.encode().as_bytes());
    to.extend_from_slice(payload);
}

/// What flate2 makes of a payload with this behind it, and whether it has used all of it.
fn flate2_makes(payload: &[u8], end: &[u8]) -> Option<(Vec<u8>, bool)> {
    let input = [payload, end].concat();
    let mut decoder = DeflateDecoder::new(&input[..]).take(4 * LEN_MAX as u64);
    let mut inflated = Vec::new();
    decoder.read_to_end(&mut inflated).ok()?;
    let is_all = decoder.into_inner().total_in() as usize == input.len();
    Some((inflated, is_all))
}

fuzz_target!(|data: &[u8]| {
    let [first, cut, payload @ ..] = data else {
        return;
    };
    let takeover = first & 0x80 != 0;
    let cut = usize::from(*cut).min(payload.len());
    let is_whole = cut == payload.len();
    let mut bytes = Vec::new();
    if is_whole {
        push_frame(&mut bytes, true, Opcode::Binary, payload);
    } else {
        push_frame(&mut bytes, false, Opcode::Binary, &payload[..cut]);
        push_frame(&mut bytes, true, Opcode::Continuation, &payload[cut..]);
    }
    let stream = Stream {
        bytes: &bytes,
        at_once: usize::from(first & 0x7F) + 1,
    };
    let mut limits = Limits::default();
    limits.message_len_max = LEN_MAX;
    limits.inflate_ratio_max = 0;
    let params = DeflateParams {
        server_no_context_takeover: !takeover,
        ..DeflateParams::default()
    };
    let ws = WebSocket::from_stream_deflated(stream, Role::Client, &[], &limits, &params);
    let mut ws = ws.expect("valid limits");
    let got = ws.read_message().map(|message| message.payload().to_vec());

    // With one end and with another: a message that is cut short may by chance go on in one.
    let ends: [&[u8]; 2] = [
        b"\x00\x00\xFF\xFF\x01\x00\x00\xFF\xFF",
        b"\x00\x00\xFF\xFF\x00\x00\x00\xFF\xFF\x01\x00\x00\xFF\xFF",
    ];
    let [one, other] = ends.map(|end| flate2_makes(payload, end));
    let mut without = Vec::new();
    let _ = DeflateDecoder::new(payload)
        .take(4 * LEN_MAX as u64)
        .read_to_end(&mut without);
    match (one, other, got) {
        (Some((want, true)), Some((_, true)), got) if want == without && want.len() <= LEN_MAX => {
            let got = got.expect("flate2 takes it");
            assert!(got == want);
        }
        // By itself and whole it goes through libdeflate, which takes a little more.
        (None, None, Ok(_)) if takeover || !is_whole => panic!("flate2 finds an error"),
        _ => {}
    }
});
