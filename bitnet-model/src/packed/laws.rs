//! What every layout must do, against a plain statement of each: where a code lies, which bytes are refused, whose scale is whose.

use proptest::prelude::*;
use rand::Rng;

use super::*;
use crate::rng::{Stream, generator};

const LAYOUTS: [Layout; 5] = [Layout::TwoBit, Layout::OneBit, Layout::Base3, Layout::Int8, Layout::Int4];

/// The codes of a layout.
fn codes_of(layout: Layout) -> Vec<i8> {
    match layout {
        Layout::TwoBit | Layout::Base3 => vec![-1, 0, 1],
        Layout::OneBit => vec![-1, 1],
        Layout::Int4 => (-8..=7).collect(),
        Layout::Int8 => (-128..=127).collect(),
    }
}

fn random_codes(layout: Layout, count: usize, seed: u64) -> Vec<i8> {
    let mut rng = generator(seed, Stream::Bench);
    let codes = codes_of(layout);
    (0..count).map(|_| codes[rng.random_range(0..codes.len())]).collect()
}

/// The code at a place, read off the bytes by the words of [`Layout`].
fn stated(layout: Layout, [rows, cols]: [usize; 2], bytes: &[u8], row: usize, col: usize) -> i32 {
    let spread = |per_byte: usize| {
        let stride = rows.div_ceil(per_byte);
        (u32::from(bytes[row % stride * cols + col]), (row / stride) as u32)
    };
    match layout {
        Layout::TwoBit => {
            let (byte, slot) = spread(4);
            (byte / 4u32.pow(slot) % 4) as i32 - 1
        }
        Layout::OneBit => {
            let (byte, slot) = spread(8);
            if byte / 2u32.pow(slot) % 2 == 1 { 1 } else { -1 }
        }
        Layout::Base3 => {
            let (byte, slot) = spread(5);
            (byte / 3u32.pow(slot) % 3) as i32 - 1
        }
        Layout::Int8 => i32::from(i8::from_ne_bytes([bytes[row * cols + col]])),
        Layout::Int4 => {
            let byte = i32::from(bytes[row * cols.div_ceil(2) + col / 2]);
            let nibble = if col.is_multiple_of(2) { byte % 16 } else { byte / 16 };
            if nibble < 8 { nibble } else { nibble - 16 }
        }
    }
}

proptest! {
    #[test]
    fn codes_lie_where_the_layout_says(rows in 1usize..20, cols in 1usize..12, seed in any::<u64>()) {
        for layout in LAYOUTS {
            let codes = random_codes(layout, rows * cols, seed);
            let packed = PackedMatrix::pack(layout, rows, cols, &codes, vec![0.5]).expect("codes of the layout");
            let [byte_rows, byte_cols] = layout.byte_shape(rows, cols);
            prop_assert_eq!(packed.bytes().len(), byte_rows * byte_cols);
            let places = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
            for ((row, col), &code) in places.zip(&codes) {
                prop_assert_eq!(stated(layout, [rows, cols], packed.bytes(), row, col), i32::from(code));
            }
            prop_assert_eq!(packed.unpack(), codes.clone());
            for (row, codes) in codes.chunks(cols).enumerate() {
                let mut found = vec![99; cols];
                packed.unpack_row(row, &mut found);
                prop_assert_eq!(&found[..], codes);
            }
            let read = PackedMatrix::from_bytes(layout, rows, cols, packed.bytes().to_vec(), vec![0.5]);
            prop_assert_eq!(read, Ok(packed));
        }
    }

    /// Any bytes: read as stated, or refused for a code that a row has.
    #[test]
    fn bytes_that_hold_no_code_are_refused(rows in 1usize..12, cols in 1usize..5, bytes in prop::collection::vec(any::<u8>(), 60)) {
        let mut rng = generator(rows as u64, Stream::Bench);
        for layout in LAYOUTS {
            let [byte_rows, byte_cols] = layout.byte_shape(rows, cols);
            // Half of the cases have one odd byte among sound ones, the others are odd all over.
            let mut bytes = bytes[..byte_rows * byte_cols].to_vec();
            if rng.random() {
                let kept = rng.random_range(0..bytes.len());
                bytes.iter_mut().enumerate().filter(|(i, _)| *i != kept).for_each(|(_, byte)| *byte = 0b0001_0010);
            }
            let places = || (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
            let sound = match layout {
                Layout::TwoBit => places().all(|(row, col)| stated(layout, [rows, cols], &bytes, row, col) < 2),
                Layout::Base3 => bytes.iter().all(|byte| *byte < 243),
                _ => true,
            };
            let read = PackedMatrix::from_bytes(layout, rows, cols, bytes.clone(), vec![1.0]);
            prop_assert_eq!(read.is_ok(), sound, "{:?}: {:?}", layout, read);
            match (read, layout) {
                (Ok(packed), _) => {
                    let codes = places().map(|(row, col)| stated(layout, [rows, cols], &bytes, row, col));
                    prop_assert!(codes.eq(packed.unpack().into_iter().map(i32::from)));
                }
                (Err(reason), Layout::TwoBit) => {
                    let named = places().find(|(row, col)| reason.ends_with(&format!("at row {row}, column {col}")));
                    let (row, col) = named.expect("a place of the matrix");
                    prop_assert_eq!(stated(layout, [rows, cols], &bytes, row, col), 2, "{}", reason);
                }
                (Err(reason), _) => {
                    let bad = bytes.iter().position(|byte| *byte >= 243).expect("one is");
                    let place = format!("the byte {} at byte row {}, column {},", bytes[bad], bad / cols, bad % cols);
                    prop_assert!(reason.contains(&place), "{}", reason);
                }
            }
        }
    }

    #[test]
    fn codes_of_no_layout_are_refused_with_their_place(rows in 1usize..7, cols in 1usize..7, place in any::<prop::sample::Index>(), code in any::<i8>()) {
        let place = place.index(rows * cols);
        for layout in LAYOUTS {
            let mut codes = random_codes(layout, rows * cols, 3);
            codes[place] = code;
            match PackedMatrix::pack(layout, rows, cols, &codes, vec![1.0]) {
                Ok(packed) => prop_assert!(codes_of(layout).contains(&code) && packed.unpack() == codes),
                Err(reason) => {
                    let (row, col) = (place / cols, place % cols);
                    let expected = format!("has code {code} at row {row}, column {col}, expected ");
                    prop_assert!(!codes_of(layout).contains(&code) && reason.starts_with(&expected), "{}", reason);
                }
            }
        }
    }
}

#[test]
fn a_byte_holds_as_many_codes_as_its_shape_says() {
    for (layout, per_byte) in LAYOUTS.into_iter().zip([4, 8, 5, 1, 2]) {
        assert_eq!(layout.codes_per_byte(), per_byte, "{layout:?}");
        // Codes share a byte along rows, and those of four bits along columns.
        for (rows, cols) in [(1usize, 1usize), (8, 8), (9, 7), (40, 40)] {
            let expected = match layout {
                Layout::Int4 | Layout::Int8 => [rows, cols.div_ceil(per_byte)],
                _ => [rows.div_ceil(per_byte), cols],
            };
            assert_eq!(layout.byte_shape(rows, cols), expected, "{layout:?}");
        }
    }
}

#[test]
fn a_matrix_tells_what_it_was_made_of() {
    let codes = [1, 0, -1, 1, 1, 0, 0, -1, 1, 0];
    let made = |group, scales: &[f32]| {
        PackedMatrix::pack_grouped(Layout::TwoBit, [2, 5], group, &codes, scales.to_vec()).expect("valid")
    };
    let whole = made(None, &[0.5]);
    assert_eq!((whole.layout(), whole.rows(), whole.cols(), whole.group()), (Layout::TwoBit, 2, 5, None));
    assert_eq!((whole.scales(), whole.scale_of(1), whole.scales_of(1)), (&[0.5][..], 0.5, &[0.5][..]));
    let rows = made(None, &[0.5, 0.25]);
    assert_eq!([rows.scale_of(0), rows.scale_of(1)], [0.5, 0.25]);
    assert_eq!([rows.scales_of(0), rows.scales_of(1)], [[0.5], [0.25]]);
    let groups = made(Some(2), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(groups.group(), Some(2));
    assert_eq!([groups.scales_of(0), groups.scales_of(1)], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]);
    assert_eq!(format!("{groups:?}"), "PackedMatrix(TwoBit, 2 x 5, 6 scales)");
    let again = groups.repack(Layout::Base3).expect("ternary");
    assert_eq!((again.layout(), again.group(), again.scales()), (Layout::Base3, Some(2), groups.scales()));
    assert_eq!(again.unpack(), codes);
}

#[test]
fn sizes_and_scales_that_do_not_fit_are_refused() {
    let pack = |count: usize, rows, cols, scales: &[f32]| {
        PackedMatrix::pack(Layout::Int8, rows, cols, &vec![1; count], scales.to_vec()).map(drop)
    };
    assert_eq!(pack(5, 2, 3, &[1.0]), Err("has 5 codes, expected 2 x 3".into()));
    assert_eq!(pack(6, 2, 3, &[]), Err("has 0 scales, expected 1 or 2 (one per row)".into()));
    assert_eq!(pack(6, 2, 3, &[1.0; 3]), Err("has 3 scales, expected 1 or 2 (one per row)".into()));
    assert!(pack(6, 2, 3, &[1.0]).is_ok() && pack(6, 2, 3, &[1.0; 2]).is_ok());
    // A product that does not fit a machine word is no size.
    assert!(pack(0, usize::MAX, 2, &[1.0]).expect_err("too large").contains("has 0 codes, expected"));
    for scale in [0.0, -0.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        let reason = pack(6, 2, 3, &[1.0, scale]).expect_err("no scale");
        assert_eq!(reason, format!("has scale {scale} at index 1, expected a positive finite number"));
    }
    assert!(pack(6, 2, 3, &[f32::MIN_POSITIVE]).is_ok());
    let empty = PackedMatrix::pack(Layout::TwoBit, 3, 0, &[], vec![1.0]).expect("rows without columns");
    assert_eq!(empty.unpack(), [0i8; 0]);
}

#[test]
#[should_panic(expected = "row 2 of 2 x 3")]
fn a_row_beyond_the_last_is_no_row() {
    let packed = PackedMatrix::pack(Layout::Int8, 2, 3, &[1; 6], vec![1.0]).expect("valid");
    packed.unpack_row(2, &mut [0; 3]);
}

#[test]
#[should_panic(expected = "row 1 of 2 x 3")]
fn a_row_has_as_many_codes_as_columns() {
    let packed = PackedMatrix::pack(Layout::Int8, 2, 3, &[1; 6], vec![1.0]).expect("valid");
    packed.unpack_row(1, &mut [0; 2]);
}

#[test]
#[should_panic(expected = "one scale for the matrix or the row")]
fn a_row_of_groups_has_no_single_scale() {
    PackedMatrix::pack_grouped(Layout::Int8, [1, 2], Some(1), &[1; 2], vec![1.0; 2]).expect("valid").scale_of(0);
}
