//! Token shards: a split as one memory-mapped file of token ids.
//!
//! # Format
//!
//! A header of 96 bytes, then the tokens; all numbers little-endian.
//!
//! ```text
//! offset  bytes
//!      0      8  "BNTOKENS"
//!      8      4  version, 1
//!     12      4  bytes of a token: 2 where the vocabulary has at most 65,536 entries, else 4
//!     16      8  number of tokens
//!     24      8  bytes of the text that the tokens came from
//!     32     32  key: SHA-256 of all that decides the content (source, tokenizer, split, separator)
//!     64     32  SHA-256 of the tokens followed by the first 64 bytes of the header
//!     96      .  tokens
//! ```
//!
//! A shard is written under a temporary name, synced and renamed, so a file under its final name is
//! whole; its checksum is verified when it is opened, unless [`super::receipts`] says that this was done before.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bitnet_infer::engine::MappedFile;
use bitnet_model::files::AtomicFile;
use sha2::{Digest, Sha256};

use super::encode::Encoder;
use super::progress::Stage;

/// The tokens of a split, mapped from a file. Cloning it shares the map.
#[derive(Debug, Clone)]
pub struct Shard {
    file: Arc<MappedFile>,
    width: usize,
    len: usize,
    text_bytes: u64,
}

impl Shard {
    /// Maps a shard and verifies it against its checksum and the key that is asked for.
    ///
    /// # Errors
    ///
    /// Not a shard, another version, another key, truncated, longer than it says, a wrong checksum.
    pub fn open(path: &Path, key: &[u8; 32]) -> Result<Shard> {
        let shard = Self::open_unread(path, key)?;
        let (header, tokens) = shard.file.bytes().split_at(HEADER);
        let mut hash = Sha256::new();
        hash.update(tokens);
        hash.update(&header[..64]);
        let name = path.display();
        ensure!(header[64..96] == hash.finalize()[..], "{name}: damaged: its checksum does not match");
        Ok(shard)
    }

    /// The same without reading the tokens to verify their checksum.
    ///
    /// # Errors
    ///
    /// As [`Shard::open`], but for the checksum.
    pub fn open_unread(path: &Path, key: &[u8; 32]) -> Result<Shard> {
        let name = path.display();
        let file = MappedFile::open(path)?;
        let map = file.bytes();
        ensure!(map.len() >= HEADER, "{name}: {} bytes are too short for a token shard", map.len());
        let header = &map[..HEADER];
        ensure!(header[..8] == *MAGIC, "{name}: not a token shard");
        let (version, width) = (number(header, 8, 4), number(header, 12, 4));
        ensure!(version == u64::from(VERSION), "{name}: token shard of version {version}, expected {VERSION}");
        ensure!(width == 2 || width == 4, "{name}: tokens of {width} bytes, expected 2 or 4");
        ensure!(header[32..64] == key[..], "{name}: made from other data or with another tokenizer");
        let expected = number(header, 16, 8).checked_mul(width).and_then(|bytes| bytes.checked_add(HEADER as u64));
        ensure!(
            expected == Some(map.len() as u64),
            "{name}: has {} bytes where its header says {}; it is truncated or damaged",
            map.len(),
            expected.map_or("far more".to_string(), |bytes| bytes.to_string())
        );
        let (width, len, text_bytes) = (width as usize, (map.len() - HEADER) / width as usize, number(header, 24, 8));
        Ok(Shard { file: Arc::new(file), width, len, text_bytes })
    }

    /// The key of its content in hexadecimal digits: equal for equal tokens from the same source and tokenizer.
    pub fn fingerprint(&self) -> String {
        self.file.bytes()[32..64].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the text that the tokens came from, separators not counted.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Bytes of the file, which is mapped.
    pub fn file_bytes(&self) -> usize {
        self.file.bytes().len()
    }

    /// Copies tokens `start..start + out.len()`.
    ///
    /// # Panics
    ///
    /// If they reach beyond the end.
    pub fn read(&self, start: usize, out: &mut [u32]) {
        assert!(start <= self.len && out.len() <= self.len - start, "tokens beyond the end of the shard");
        let from = HEADER + start * self.width;
        let bytes = &self.file.bytes()[from..from + out.len() * self.width];
        for (token, bytes) in out.iter_mut().zip(bytes.chunks_exact(self.width)) {
            *token = number(bytes, 0, self.width) as u32;
        }
    }

    /// Tokens `start..start + count` as a vector.
    ///
    /// # Panics
    ///
    /// If they reach beyond the end.
    pub fn tokens(&self, start: usize, count: usize) -> Vec<u32> {
        let mut out = vec![0; count];
        self.read(start, &mut out);
        out
    }
}

/// Writes a shard: documents go in, tokens are encoded in parallel and written in order.
pub struct ShardWriter<'a> {
    encoder: &'a Encoder,
    separator: Option<u32>,
    width: usize,
    path: PathBuf,
    out: BufWriter<AtomicFile>,
    stage: &'a Stage<'a>,
    hash: Sha256,
    tokens: u64,
    text_bytes: u64,
    documents: u64,
    /// Documents that wait to be encoded together.
    pending: Vec<String>,
    pending_bytes: usize,
}

impl<'a> ShardWriter<'a> {
    /// Starts a shard that will be at `path`; `separator` goes between documents. `stage` hears of the text that is encoded.
    ///
    /// # Errors
    ///
    /// A folder that cannot be written.
    pub fn create(
        path: &Path,
        encoder: &'a Encoder,
        vocab_size: usize,
        separator: Option<u32>,
        stage: &'a Stage<'a>,
    ) -> Result<Self> {
        let mut writer = ShardWriter {
            encoder,
            separator,
            width: if vocab_size <= 1 << 16 { 2 } else { 4 },
            path: path.to_path_buf(),
            out: BufWriter::with_capacity(1 << 20, AtomicFile::create(path)?),
            stage,
            hash: Sha256::new(),
            tokens: 0,
            text_bytes: 0,
            documents: 0,
            pending: Vec::new(),
            pending_bytes: 0,
        };
        writer.out.write_all(&[0; HEADER]).with_context(|| writer.failure())?;
        Ok(writer)
    }

    /// Adds a document.
    ///
    /// # Errors
    ///
    /// Text that the tokenizer cannot encode, a full disk, what the stage returns; nothing is then left behind.
    pub fn add(&mut self, text: &str) -> Result<()> {
        self.text_bytes += text.len() as u64;
        if text.len() >= TOGETHER {
            self.flush()?;
            return self.encode(&[text]);
        }
        self.pending.push(text.to_string());
        self.pending_bytes += text.len();
        if self.pending_bytes >= TOGETHER { self.flush() } else { Ok(()) }
    }

    /// Writes the header, syncs, and gives the file its name.
    ///
    /// # Errors
    ///
    /// A full disk; no token at all.
    pub fn finish(mut self, key: &[u8; 32]) -> Result<()> {
        self.flush()?;
        ensure!(self.tokens > 0, "the text holds no token");
        let mut header = [0_u8; HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(self.width as u32).to_le_bytes());
        header[16..24].copy_from_slice(&self.tokens.to_le_bytes());
        header[24..32].copy_from_slice(&self.text_bytes.to_le_bytes());
        header[32..64].copy_from_slice(key);
        self.hash.update(&header[..64]);
        header[64..].copy_from_slice(&self.hash.clone().finalize());
        let failure = self.failure();
        self.out.seek(SeekFrom::Start(0)).with_context(|| failure.clone())?;
        self.out.write_all(&header).with_context(|| failure.clone())?;
        let file = self.out.into_inner().map_err(|error| error.into_error()).with_context(|| failure)?;
        Ok(file.keep()?)
    }

    fn flush(&mut self) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let documents: Vec<&str> = pending.iter().map(String::as_str).collect();
        self.encode(&documents)
    }

    fn encode(&mut self, documents: &[&str]) -> Result<()> {
        // The pieces, and for each whether a document starts with it.
        let mut pieces: Vec<(&str, bool)> = Vec::new();
        for document in documents {
            let cut = self.encoder.pieces(document, PIECE);
            pieces.extend(cut.into_iter().enumerate().map(|(place, piece)| (piece, place == 0)));
        }
        for group in pieces.chunks(PIECES_TOGETHER) {
            let texts: Vec<&str> = group.iter().map(|(text, _)| *text).collect();
            for (ids, (_, starts)) in self.encoder.encode(&texts)?.iter().zip(group) {
                if *starts {
                    let separator = self.separator.filter(|_| self.documents > 0);
                    self.documents += 1;
                    self.write(separator.as_slice())?;
                }
                self.write(ids)?;
            }
            self.stage.add(texts.iter().map(|text| text.len()).sum())?;
        }
        Ok(())
    }

    fn write(&mut self, ids: &[u32]) -> Result<()> {
        let mut bytes = Vec::with_capacity(ids.len() * self.width);
        for id in ids {
            match (self.width, u16::try_from(*id)) {
                (2, Ok(id)) => bytes.extend_from_slice(&id.to_le_bytes()),
                (2, Err(_)) => bail!("token {id} is beyond the vocabulary"),
                _ => bytes.extend_from_slice(&id.to_le_bytes()),
            }
        }
        self.hash.update(&bytes);
        self.tokens += ids.len() as u64;
        self.out.write_all(&bytes).with_context(|| self.failure())
    }

    fn failure(&self) -> String {
        format!("cannot write {}; is the disk full?", self.path.display())
    }
}

/// The little-endian number of `width` bytes at `at`.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().rev().fold(0, |sum, &byte| (sum << 8) | u64::from(byte))
}

const MAGIC: &[u8; 8] = b"BNTOKENS";
const VERSION: u32 = 1;
const HEADER: usize = 96;

/// Documents are encoded together once they have so many bytes.
const TOGETHER: usize = 4 << 20;

/// A long document is encoded in pieces of about this many bytes.
const PIECE: usize = 64 << 10;

/// So many pieces are held as tokens before they are written: a few seconds of work, which a stop has to wait for.
const PIECES_TOGETHER: usize = 256;

#[cfg(test)]
mod tests;
