//! Payloads that say which they are: number, Adler-32 of the rest, and the rest, which differs
//! from message to message.
//!
//! ```text
//!  0        8      12
//!  | number | sum  | filler ... |
//! ```

use simd_adler32::adler32;

/// Number and checksum.
pub const PAYLOAD_LEN_MIN: usize = 8 + 4;

/// Writes message `number` over `payload`, which has at least [`PAYLOAD_LEN_MIN`] bytes.
pub fn fill(payload: &mut [u8], number: u64) {
    payload[..8].copy_from_slice(&number.to_be_bytes());
    let filler = number.to_le_bytes();
    for chunk in payload[PAYLOAD_LEN_MIN..].chunks_mut(filler.len()) {
        chunk.copy_from_slice(&filler[..chunk.len()]);
    }
    let sum = adler32(&&payload[PAYLOAD_LEN_MIN..]);
    payload[8..PAYLOAD_LEN_MIN].copy_from_slice(&sum.to_be_bytes());
}

/// Checks that `payload` is message `number`, of `len` bytes, unaltered.
///
/// # Errors
/// What it is instead.
pub fn check(payload: &[u8], number: u64, len: usize) -> Result<(), String> {
    if payload.len() != len {
        return Err(format!("reply {number} has {} bytes", payload.len()));
    }
    let (got, rest) = payload.split_first_chunk::<8>().ok_or("a short reply")?;
    let got = u64::from_be_bytes(*got);
    if got != number {
        return Err(format!("reply {got} came where {number} was due"));
    }
    let (sum, rest) = rest.split_first_chunk::<4>().ok_or("a short reply")?;
    if u32::from_be_bytes(*sum) != adler32(&rest) {
        return Err(format!("reply {number} was altered"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_found() {
        for len in [12, 13, 64, 1000] {
            let mut payload = vec![0; len];
            fill(&mut payload, 7);
            assert_eq!(check(&payload, 7, len), Ok(()));
            assert!(check(&payload, 8, len).is_err());
            assert!(check(&payload[..len - 1], 7, len).is_err());
            for place in 0..len {
                payload[place] ^= 0x10;
                assert!(check(&payload, 7, len).is_err(), "{len} {place}");
                payload[place] ^= 0x10;
            }
        }
    }
}
