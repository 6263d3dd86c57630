# The framing of .kexp version 1 for Kaitai Struct (https://kaitai.io): a parser in a dozen
# languages for the price of a compiler run. It finds things; it does not check what kexp-v1.md wants
# checked (checksums, roots, padding, rules between fields). Names are those of kexp-v1.fields.toml.
meta:
  id: kexp_v1
  title: kexp container, version 1
  file-extension: kexp
  license: MIT
  ks-version: '0.10'
  endian: le
seq:
  - id: superblock
    type: superblock
    size: 4096
  - id: section_table
    type: section_entry
    repeat: expr
    repeat-expr: superblock.section_count
types:
  superblock:
    seq:
      - id: magic
        contents: [0x89, 'KEXP', 0x0d, 0x0a, 0x1a]
      - id: version_major
        type: u2
        valid: 1
      - id: version_minor
        type: u2
      - id: header_size
        type: u4
        valid: 4096
      - id: incompat_features
        type: u8
        valid: 0
      - id: compat_features
        type: u8
      - id: file_size
        type: u8
        valid: _root._io.size
      - id: block_align
        type: u4
        valid: 16384
      - id: tensor_align
        type: u4
        valid: 128
      - id: shard_no
        type: u4
      - id: shard_count
        type: u4
        valid:
          min: 1
          max: 4096
      - id: section_off
        type: u8
        valid: 4096
      - id: section_count
        type: u4
        valid:
          min: 1
          max: 64
      - id: table_crc
        type: u4
      - id: set_root
        size: 32
      - id: shard_root
        size: 32
      - id: zeros
        size: 3956
      - id: header_crc
        type: u4
  section_entry:
    seq:
      - id: tag
        type: str
        size: 4
        encoding: ASCII
      - id: codec
        type: u4
        enum: codec
      - id: offset
        type: u8
      - id: stored_len
        type: u8
      - id: raw_len
        type: u8
      - id: crc32
        type: u4
      - id: reserved
        type: u4
        valid: 0
      - id: sha256
        size: 32
      - id: reserved_2
        type: u8
        valid: 0
    instances:
      stored:
        doc: The bytes in the file, compressed if codec says so.
        io: _root._io
        pos: offset
        size: stored_len
      body:
        doc: The structure inside a section that is not compressed and has one.
        io: _root._io
        pos: offset
        size: stored_len
        if: codec == codec::raw and (tag == 'LAYT' or tag == 'EXPT' or tag == 'DENS')
        type:
          switch-on: tag
          cases:
            '"LAYT"': layout_section
            '"EXPT"': expert_index
            '"DENS"': dense_image
  layout_section:
    seq:
      - id: header
        type: layout_section_header
      - id: layouts
        type: layout
        repeat: expr
        repeat-expr: header.layout_count
  layout_section_header:
    seq:
      - id: layout_count
        type: u4
        valid:
          min: 1
          max: 4096
      - id: reserved
        size: 12
  layout:
    seq:
      - id: header
        type: layout_header
      - id: parts
        type: part
        repeat: expr
        repeat-expr: header.part_count
  layout_header:
    seq:
      - id: id
        type: u2
      - id: part_count
        type: u2
        valid:
          min: 1
          max: 64
      - id: reserved
        type: u4
        valid: 0
      - id: payload_len
        type: u8
      - id: block_len
        type: u8
      - id: reserved_2
        type: u8
        valid: 0
  part:
    seq:
      - id: projection
        type: u1
        enum: projection
      - id: role
        type: u1
        enum: role
      - id: dtype
        type: u1
        enum: dtype
      - id: mode
        type: u1
        enum: mode
      - id: ndim
        type: u1
        valid:
          max: 2
      - id: bits
        type: u1
      - id: group_size
        type: u2
      - id: rows
        type: u4
      - id: cols
        type: u4
      - id: offset
        type: u8
      - id: length
        type: u8
  expert_index:
    seq:
      - id: entries
        type: expert_entry
        repeat: eos
  expert_entry:
    seq:
      - id: layer
        type: u2
      - id: expert
        type: u2
      - id: layout
        type: u2
      - id: flags
        type: u2
        valid: 0
      - id: offset
        type: u8
      - id: length
        type: u8
      - id: crc32
        type: u4
      - id: reserved
        type: u4
        valid: 0
      - id: sha256
        size: 32
    instances:
      block:
        doc: The expert's parts, at the offsets that its layout says, and zeros.
        io: _root._io
        pos: offset
        size: length
  dense_image:
    doc: A safetensors image; offsets in its header count from the start of data.
    seq:
      - id: len_header
        type: u8
      - id: header
        type: str
        size: len_header
        encoding: UTF-8
      - id: data
        size-eos: true
enums:
  codec:
    0: raw
    1: zstd
  projection:
    1: gate
    2: up
    3: gate_up
    4: down
    5: fc1
    6: fc2
  role:
    1: weight
    2: scales
    3: biases
    4: bias
    5: global_scale
  mode:
    1: none
    2: affine
    3: mxfp4
    4: mxfp8
    5: nvfp4
  dtype:
    1: bool
    2: u8
    3: i8
    4: u16
    5: i16
    6: u32
    7: i32
    8: u64
    9: i64
    10: f16
    11: bf16
    12: f32
    13: f64
    14: c64
    15: f8_e4m3
    16: f8_e5m2
    17: f8_e8m0
    18: f8_e4m3fnuz
    19: f8_e5m2fnuz
    20: f4
    21: f6_e2m3
    22: f6_e3m2
