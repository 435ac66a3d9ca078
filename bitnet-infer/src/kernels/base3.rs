//! Five ternary codes in a byte, in the form that is cheapest to take apart: 1.6 bits a weight, for weights that come from
//! memory.
//!
//! A table of 128 bytes fits in two vectors, one of 256 would need four and a choice. So the top bit of a byte is a sign of
//! its first four codes, and the rest is a number from 0 to 122:
//!
//! ```text
//! bit      7                  6..0
//!      1: negate c0..c3      41 u4 + m        u = code + 1 as everywhere; u4 is that of the fifth code
//! ```
//!
//! Of the four codes and their negatives only one is stored: `v = u0 + 3 u1 + 9 u2 + 27 u3` if that is at most 40 (all codes
//! zero: `v = 40`), and `80 - v` with the top bit set otherwise. Two look-ups and a subtraction from 2 under a mask give back
//! the five `u`. Numbers of 123 and above mean nothing, and are never made.

/// `u0..u3` of a byte without its top bit, two bits each, lowest first.
pub(super) const FOURS: [u8; 128] = {
    let mut table = [0; 128];
    let mut x = 0;
    while x < 123 {
        let v = x % 41;
        table[x as usize] = (v % 3) | (v / 3 % 3) << 2 | (v / 9 % 3) << 4 | (v / 27) << 6;
        x += 1;
    }
    table
};

/// `u4` of a byte without its top bit.
pub(super) const FIFTHS: [u8; 128] = {
    let mut table = [0; 128];
    let mut x = 0;
    while x < 123 {
        table[x as usize] = x / 41;
        x += 1;
    }
    table
};

/// The byte of `u0 + 3 u1 + 9 u2 + 27 u3 + 81 u4`.
const BYTES: [u8; 243] = {
    let mut table = [0; 243];
    let mut number = 0;
    while number < 243 {
        let (fifth, v) = (number / 81, number % 81);
        table[number as usize] = if v <= 40 { 41 * fifth + v } else { 0x80 | (41 * fifth + 80 - v) };
        number += 1;
    }
    table
};

/// `u` of all four bytes of a word of up to [`SLOTS`] slots; slots that are missing count as 0.
pub(super) fn encode(slots: &[[i8; 4]]) -> u32 {
    let digit = |number: [u8; 4], u: &[i8; 4]| std::array::from_fn(|j| 3 * number[j] + u[j] as u8);
    u32::from_le_bytes(slots.iter().rev().fold([0; 4], digit).map(|number| BYTES[usize::from(number)]))
}

/// `u` of one slot.
pub(super) fn decode(byte: u8, slot: usize) -> u8 {
    let x = usize::from(byte & 0x7f);
    if slot == SLOTS - 1 {
        return FIFTHS[x];
    }
    let u = (FOURS[x] >> (2 * slot)) & 3;
    if byte < 0x80 { u } else { 2 - u }
}

/// Codes of a byte.
pub(super) const SLOTS: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_five_codes_have_a_byte_of_their_own() {
        let mut seen = [false; 256];
        for number in 0..243u8 {
            let u: [u8; SLOTS] = [1, 3, 9, 27, 81].map(|place| number / place % 3);
            let word = encode(&u.map(|u| [u as i8, 0, 1, 2]));
            let [byte, zeros, ones, twos] = word.to_le_bytes();
            assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "byte {byte} twice");
            for (slot, u) in u.into_iter().enumerate() {
                assert_eq!([byte, zeros, ones, twos].map(|byte| decode(byte, slot)), [u, 0, 1, 2]);
            }
        }
    }

    #[test]
    fn missing_slots_are_zeros() {
        assert_eq!(encode(&[[2, 1, 0, 2]; 2]), encode(&[[2, 1, 0, 2], [2, 1, 0, 2], [0; 4], [0; 4], [0; 4]]));
    }
}
