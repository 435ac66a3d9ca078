//! Parquet: one row a document, the text in one column of strings.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use parquet::basic::{Compression, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::ByteArrayType;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::data::source::OnDocument;

/// Calls `on_document` with the column's value in each row; rows without a value are skipped.
///
/// # Errors
///
/// Not a Parquet file, a compression this build does not read, no such column, a column that is not
/// one string a row, a value that is not UTF-8 (with its row).
pub fn read(path: &Path, field: &str, on_document: &mut OnDocument<'_>) -> Result<()> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let reader = SerializedFileReader::new(file).with_context(|| format!("{name}: not a readable Parquet file"))?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let column = (0..schema.num_columns()).find(|&index| schema.column(index).path().string() == field);
    let Some(column) = column else {
        let columns: Vec<String> =
            (0..schema.num_columns()).map(|index| schema.column(index).path().string()).collect();
        bail!(
            "{name}: no column `{field}`; the file has: {}. Set `field` to the one with the text",
            columns.join(", ")
        );
    };
    let about = schema.column(column);
    ensure!(
        about.physical_type() == Physical::BYTE_ARRAY && about.max_rep_level() == 0,
        "{name}: the column `{field}` is {}, expected one string a row",
        if about.max_rep_level() > 0 { "a list".to_string() } else { about.physical_type().to_string() }
    );
    let present = about.max_def_level();
    let mut first_row = 0;
    for group in 0..reader.num_row_groups() {
        let codec = reader.metadata().row_group(group).column(column).compression();
        ensure!(
            matches!(codec, Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_)),
            "{name}: the column `{field}` is compressed with {}, expected SNAPPY, GZIP or none; write the file anew with one \
             of these",
            codec.to_string().split('(').next().unwrap_or_default()
        );
        let group = reader.get_row_group(group).with_context(|| format!("{name}: cannot read row group {group}"))?;
        let column =
            group.get_column_reader(column).with_context(|| format!("{name}: cannot read column `{field}`"))?;
        let ColumnReader::ByteArrayColumnReader(column) = column else {
            bail!("{name}: the column `{field}` is not of strings");
        };
        first_row = read_group(path, field, column, present, first_row, on_document)?;
    }
    Ok(())
}

/// Reads one row group and returns the number of the row after it.
fn read_group(
    path: &Path,
    field: &str,
    mut column: ColumnReaderImpl<ByteArrayType>,
    present: i16,
    first_row: u64,
    on_document: &mut OnDocument<'_>,
) -> Result<u64> {
    let name = path.display();
    let mut row = first_row;
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    loop {
        values.clear();
        levels.clear();
        let (rows, _, _) = column
            .read_records(ROWS_AT_ONCE, Some(&mut levels), None, &mut values)
            .with_context(|| format!("{name}: cannot read column `{field}` from row {row} on"))?;
        if rows == 0 {
            return Ok(row);
        }
        let mut filled = values.iter();
        for index in 0..rows {
            // A required column has no levels: every row has a value.
            if present == 0 || levels.get(index).is_some_and(|&level| level == present) {
                let value = filled.next().with_context(|| format!("{name}: row {row} of `{field}` has no value"))?;
                let text =
                    value.as_utf8().map_err(|_| anyhow::anyhow!("{name}: row {row} of `{field}` is not UTF-8 text"))?;
                on_document(text)?;
            }
            row += 1;
        }
    }
}

const ROWS_AT_ONCE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::{ByteArray, Int32Type};
    use parquet::file::metadata::ParquetMetaDataWriter;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    fn file_of(texts: &[Option<&[u8]>], groups: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let schema =
            parse_message_type("message m { required int32 id; optional binary text (UTF8); }").expect("parses");
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let out = file.reopen().expect("opens");
        let mut writer = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties)).expect("starts");
        for part in texts.chunks(texts.len().div_ceil(groups)) {
            let mut group = writer.next_row_group().expect("a group");
            let ids: Vec<i32> = (0..part.len() as i32).collect();
            let mut column = group.next_column().expect("a column").expect("the id");
            column.typed::<Int32Type>().write_batch(&ids, None, None).expect("writes");
            column.close().expect("closes");
            let values: Vec<ByteArray> = part.iter().flatten().map(|text| ByteArray::from(text.to_vec())).collect();
            let levels: Vec<i16> = part.iter().map(|text| i16::from(text.is_some())).collect();
            let mut column = group.next_column().expect("a column").expect("the text");
            column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).expect("writes");
            column.close().expect("closes");
            group.close().expect("closes");
        }
        writer.close().expect("closes");
        file
    }

    fn documents(path: &Path, field: &str) -> Result<Vec<String>> {
        let mut out = Vec::new();
        read(path, field, &mut |text| {
            out.push(text.to_string());
            Ok(())
        })?;
        Ok(out)
    }

    #[test]
    fn rows_come_in_order_over_groups_and_without_nulls() {
        let texts: Vec<String> = (0..1000).map(|index| format!("row {index}")).collect();
        let rows: Vec<Option<&[u8]>> =
            texts.iter().enumerate().map(|(index, text)| (index % 7 != 3).then_some(text.as_bytes())).collect();
        let file = file_of(&rows, 3);
        let expected: Vec<&String> =
            texts.iter().enumerate().filter(|(index, _)| index % 7 != 3).map(|(_, t)| t).collect();
        assert_eq!(documents(file.path(), "text").expect("reads").iter().collect::<Vec<_>>(), expected);
    }

    /// The same file, whose footer says that its columns are compressed in another way.
    fn recoded(file: &tempfile::NamedTempFile, codec: Compression) -> tempfile::NamedTempFile {
        let bytes = std::fs::read(file.path()).expect("reads");
        let metadata = SerializedFileReader::new(file.reopen().expect("opens")).expect("reads").metadata().clone();
        let groups = metadata.row_groups().iter().map(|group| {
            let columns = group
                .columns()
                .iter()
                .map(|column| column.clone().into_builder().set_compression(codec).build().expect("a column"));
            group.clone().into_builder().set_column_metadata(columns.collect()).build().expect("a group")
        });
        let metadata = metadata.clone().into_builder().set_row_groups(groups.collect()).build();
        let footer = u32::from_le_bytes(bytes[bytes.len() - 8..][..4].try_into().expect("four bytes")) as usize;
        let mut out = bytes[..bytes.len() - 8 - footer].to_vec();
        ParquetMetaDataWriter::new(&mut out, &metadata).finish().expect("writes");
        let recoded = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(recoded.path(), out).expect("writes");
        recoded
    }

    #[test]
    fn a_compression_that_cannot_be_read_is_named() {
        let good = file_of(&[Some(b"a")], 1);
        assert_eq!(documents(recoded(&good, Compression::SNAPPY).path(), "text").expect("as it was"), ["a"]);
        for (codec, name) in [
            (Compression::ZSTD(Default::default()), "ZSTD"),
            (Compression::BROTLI(Default::default()), "BROTLI"),
            (Compression::LZ4_RAW, "LZ4_RAW"),
        ] {
            let error = format!("{:#}", documents(recoded(&good, codec).path(), "text").expect_err(name));
            let expected = format!("the column `text` is compressed with {name}, expected SNAPPY, GZIP or none");
            assert!(error.contains(&expected) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn faults_are_named() {
        let good = file_of(&[Some(b"a")], 1);
        let binary = file_of(&[Some(b"a"), None, Some(b"\xff")], 1);
        let garbage = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(garbage.path(), b"not parquet at all").expect("writes");
        for (path, field, said) in [
            (good.path(), "body", "no column `body`; the file has: id, text"),
            (good.path(), "id", "the column `id` is INT32, expected one string a row"),
            (binary.path(), "text", "row 2 of `text` is not UTF-8"),
            (garbage.path(), "text", "not a readable Parquet file"),
        ] {
            let error = format!("{:#}", documents(path, field).expect_err("must be refused"));
            assert!(error.contains(said), "{error}");
        }
    }
}
