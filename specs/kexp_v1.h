/* .kexp version 1: the layout of its structures, nothing else. Made from
 * kexp-v1.fields.toml by make_tables.py; kexp-v1.md says what the fields mean.
 * Little-endian: on another machine each field must be converted. */

#ifndef KEXP_V1_H
#define KEXP_V1_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define KEXP_MAGIC "\x89\x4b\x45\x58\x50\x0d\x0a\x1a"
#define KEXP_ZSTD_MAGIC "\x28\xb5\x2f\xfd"
#define KEXP_VERSION_MAJOR 1
#define KEXP_VERSION_MINOR 0
#define KEXP_HEADER_SIZE 4096
#define KEXP_SECTION_ENTRY_SIZE 80
#define KEXP_EXPERT_ENTRY_SIZE 64
#define KEXP_BLOCK_ALIGN 16384
#define KEXP_TENSOR_ALIGN 128

#define KEXP_MAX_SHARDS 4096
#define KEXP_MAX_SECTIONS 64
#define KEXP_MAX_META_BYTES 16777216
#define KEXP_MAX_LAYOUT_SECTION_BYTES 8519696
#define KEXP_MAX_INDEX_BYTES 67108864
#define KEXP_MAX_DENSE_JSON_BYTES 16777216
#define KEXP_MAX_COMPRESSED_RAW_BYTES 16777216
#define KEXP_MAX_MANIFEST_BYTES 16777216
#define KEXP_MAX_CONFIG_BYTES 16777216
#define KEXP_MAX_CONFIG_DEPTH 64
#define KEXP_MAX_JSON_DEPTH 16
#define KEXP_MAX_JSON_VALUES 262144
#define KEXP_MAX_JSON_INTEGER 9007199254740991
#define KEXP_MAX_JSON_STRING_BYTES 4096
#define KEXP_MAX_ZSTD_WINDOW_BYTES 8388608
#define KEXP_MAX_LAYER 4095
#define KEXP_MAX_EXPERTS_PER_LAYER 16384
#define KEXP_MAX_LAYOUTS 4096
#define KEXP_MAX_PARTS 64
#define KEXP_MAX_PAYLOAD_BYTES 1073741824
#define KEXP_MAX_TENSOR_DIMS 32
#define KEXP_MAX_TENSOR_ELEMENTS 9007199254740991
#define KEXP_MAX_FILE_NAME 255

enum kexp_codec {
    KEXP_CODEC_RAW = 0,
    KEXP_CODEC_ZSTD = 1,
};

enum kexp_projection {
    KEXP_PROJECTION_GATE = 1,
    KEXP_PROJECTION_UP = 2,
    KEXP_PROJECTION_GATE_UP = 3,
    KEXP_PROJECTION_DOWN = 4,
    KEXP_PROJECTION_FC1 = 5,
    KEXP_PROJECTION_FC2 = 6,
};

enum kexp_role {
    KEXP_ROLE_WEIGHT = 1,
    KEXP_ROLE_SCALES = 2,
    KEXP_ROLE_BIASES = 3,
    KEXP_ROLE_BIAS = 4,
    KEXP_ROLE_GLOBAL_SCALE = 5,
};

enum kexp_mode {
    KEXP_MODE_NONE = 1,
    KEXP_MODE_AFFINE = 2,
    KEXP_MODE_MXFP4 = 3,
    KEXP_MODE_MXFP8 = 4,
    KEXP_MODE_NVFP4 = 5,
};

enum kexp_dtype {
    KEXP_DTYPE_BOOL = 1,
    KEXP_DTYPE_U8 = 2,
    KEXP_DTYPE_I8 = 3,
    KEXP_DTYPE_U16 = 4,
    KEXP_DTYPE_I16 = 5,
    KEXP_DTYPE_U32 = 6,
    KEXP_DTYPE_I32 = 7,
    KEXP_DTYPE_U64 = 8,
    KEXP_DTYPE_I64 = 9,
    KEXP_DTYPE_F16 = 10,
    KEXP_DTYPE_BF16 = 11,
    KEXP_DTYPE_F32 = 12,
    KEXP_DTYPE_F64 = 13,
    KEXP_DTYPE_C64 = 14,
    KEXP_DTYPE_F8_E4M3 = 15,
    KEXP_DTYPE_F8_E5M2 = 16,
    KEXP_DTYPE_F8_E8M0 = 17,
    KEXP_DTYPE_F8_E4M3FNUZ = 18,
    KEXP_DTYPE_F8_E5M2FNUZ = 19,
    KEXP_DTYPE_F4 = 20,
    KEXP_DTYPE_F6_E2M3 = 21,
    KEXP_DTYPE_F6_E3M2 = 22,
};

struct kexp_superblock {
    uint8_t magic[8];
    uint16_t version_major;
    uint16_t version_minor;
    uint32_t header_size;
    uint64_t incompat_features;
    uint64_t compat_features;
    uint64_t file_size;
    uint32_t block_align;
    uint32_t tensor_align;
    uint32_t shard_no;
    uint32_t shard_count;
    uint64_t section_off;
    uint32_t section_count;
    uint32_t table_crc;
    uint8_t set_root[32];
    uint8_t shard_root[32];
    uint8_t zeros[3956];
    uint32_t header_crc;
};
static_assert(sizeof(struct kexp_superblock) == 4096, "size");
static_assert(offsetof(struct kexp_superblock, magic) == 0, "magic");
static_assert(offsetof(struct kexp_superblock, version_major) == 8, "version_major");
static_assert(offsetof(struct kexp_superblock, version_minor) == 10, "version_minor");
static_assert(offsetof(struct kexp_superblock, header_size) == 12, "header_size");
static_assert(offsetof(struct kexp_superblock, incompat_features) == 16, "incompat_features");
static_assert(offsetof(struct kexp_superblock, compat_features) == 24, "compat_features");
static_assert(offsetof(struct kexp_superblock, file_size) == 32, "file_size");
static_assert(offsetof(struct kexp_superblock, block_align) == 40, "block_align");
static_assert(offsetof(struct kexp_superblock, tensor_align) == 44, "tensor_align");
static_assert(offsetof(struct kexp_superblock, shard_no) == 48, "shard_no");
static_assert(offsetof(struct kexp_superblock, shard_count) == 52, "shard_count");
static_assert(offsetof(struct kexp_superblock, section_off) == 56, "section_off");
static_assert(offsetof(struct kexp_superblock, section_count) == 64, "section_count");
static_assert(offsetof(struct kexp_superblock, table_crc) == 68, "table_crc");
static_assert(offsetof(struct kexp_superblock, set_root) == 72, "set_root");
static_assert(offsetof(struct kexp_superblock, shard_root) == 104, "shard_root");
static_assert(offsetof(struct kexp_superblock, zeros) == 136, "zeros");
static_assert(offsetof(struct kexp_superblock, header_crc) == 4092, "header_crc");

struct kexp_section_entry {
    uint8_t tag[4];
    uint32_t codec;
    uint64_t offset;
    uint64_t stored_len;
    uint64_t raw_len;
    uint32_t crc32;
    uint32_t reserved;
    uint8_t sha256[32];
    uint64_t reserved_2;
};
static_assert(sizeof(struct kexp_section_entry) == 80, "size");
static_assert(offsetof(struct kexp_section_entry, tag) == 0, "tag");
static_assert(offsetof(struct kexp_section_entry, codec) == 4, "codec");
static_assert(offsetof(struct kexp_section_entry, offset) == 8, "offset");
static_assert(offsetof(struct kexp_section_entry, stored_len) == 16, "stored_len");
static_assert(offsetof(struct kexp_section_entry, raw_len) == 24, "raw_len");
static_assert(offsetof(struct kexp_section_entry, crc32) == 32, "crc32");
static_assert(offsetof(struct kexp_section_entry, reserved) == 36, "reserved");
static_assert(offsetof(struct kexp_section_entry, sha256) == 40, "sha256");
static_assert(offsetof(struct kexp_section_entry, reserved_2) == 72, "reserved_2");

struct kexp_layout_section_header {
    uint32_t layout_count;
    uint8_t reserved[12];
};
static_assert(sizeof(struct kexp_layout_section_header) == 16, "size");
static_assert(offsetof(struct kexp_layout_section_header, layout_count) == 0, "layout_count");
static_assert(offsetof(struct kexp_layout_section_header, reserved) == 4, "reserved");

struct kexp_layout_header {
    uint16_t id;
    uint16_t part_count;
    uint32_t reserved;
    uint64_t payload_len;
    uint64_t block_len;
    uint64_t reserved_2;
};
static_assert(sizeof(struct kexp_layout_header) == 32, "size");
static_assert(offsetof(struct kexp_layout_header, id) == 0, "id");
static_assert(offsetof(struct kexp_layout_header, part_count) == 2, "part_count");
static_assert(offsetof(struct kexp_layout_header, reserved) == 4, "reserved");
static_assert(offsetof(struct kexp_layout_header, payload_len) == 8, "payload_len");
static_assert(offsetof(struct kexp_layout_header, block_len) == 16, "block_len");
static_assert(offsetof(struct kexp_layout_header, reserved_2) == 24, "reserved_2");

struct kexp_part {
    uint8_t projection;
    uint8_t role;
    uint8_t dtype;
    uint8_t mode;
    uint8_t ndim;
    uint8_t bits;
    uint16_t group_size;
    uint32_t rows;
    uint32_t cols;
    uint64_t offset;
    uint64_t length;
};
static_assert(sizeof(struct kexp_part) == 32, "size");
static_assert(offsetof(struct kexp_part, projection) == 0, "projection");
static_assert(offsetof(struct kexp_part, role) == 1, "role");
static_assert(offsetof(struct kexp_part, dtype) == 2, "dtype");
static_assert(offsetof(struct kexp_part, mode) == 3, "mode");
static_assert(offsetof(struct kexp_part, ndim) == 4, "ndim");
static_assert(offsetof(struct kexp_part, bits) == 5, "bits");
static_assert(offsetof(struct kexp_part, group_size) == 6, "group_size");
static_assert(offsetof(struct kexp_part, rows) == 8, "rows");
static_assert(offsetof(struct kexp_part, cols) == 12, "cols");
static_assert(offsetof(struct kexp_part, offset) == 16, "offset");
static_assert(offsetof(struct kexp_part, length) == 24, "length");

struct kexp_expert_entry {
    uint16_t layer;
    uint16_t expert;
    uint16_t layout;
    uint16_t flags;
    uint64_t offset;
    uint64_t length;
    uint32_t crc32;
    uint32_t reserved;
    uint8_t sha256[32];
};
static_assert(sizeof(struct kexp_expert_entry) == 64, "size");
static_assert(offsetof(struct kexp_expert_entry, layer) == 0, "layer");
static_assert(offsetof(struct kexp_expert_entry, expert) == 2, "expert");
static_assert(offsetof(struct kexp_expert_entry, layout) == 4, "layout");
static_assert(offsetof(struct kexp_expert_entry, flags) == 6, "flags");
static_assert(offsetof(struct kexp_expert_entry, offset) == 8, "offset");
static_assert(offsetof(struct kexp_expert_entry, length) == 16, "length");
static_assert(offsetof(struct kexp_expert_entry, crc32) == 24, "crc32");
static_assert(offsetof(struct kexp_expert_entry, reserved) == 28, "reserved");
static_assert(offsetof(struct kexp_expert_entry, sha256) == 32, "sha256");

#endif
