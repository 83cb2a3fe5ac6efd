/**
 * Numbers of the capture file formats: pcapng (IETF draft-ietf-opsawg-pcapng, sections 4.1 to 4.6 and 3.5) and pcap
 * (draft-ietf-opsawg-pcap), and link types (draft-ietf-opsawg-pcaplinktype).
 */

export const SECTION_HEADER = 0x0a0d0d0a;
export const INTERFACE_DESCRIPTION = 1;
/** Obsolete, but read. */
export const PACKET = 2;
export const SIMPLE_PACKET = 3;
export const INTERFACE_STATISTICS = 5;
export const ENHANCED_PACKET = 6;

/** As the writer of a section wrote it, so that a reader sees the byte order. */
export const BYTE_ORDER_MAGIC = 0x1a2b3c4d;
/** The length of a section that is not known beforehand is all ones. */
export const UNKNOWN_LENGTH = 0xffffffff;
/** Type and length before the body of a block, the length again behind it. */
export const BLOCK_HEADER = 8;
export const BLOCK_OVERHEAD = 12;
/** Fixed part of an enhanced packet's body. */
export const ENHANCED_PACKET_HEADER = 20;

export const END_OF_OPTIONS = 0;
export const COMMENT = 1;
export const SECTION_OS = 3;
export const SECTION_APPLICATION = 4;
export const INTERFACE_NAME = 2;
export const INTERFACE_TEXT = 3;
/** Resolution of timestamps: 10^-n s; with the highest bit set 2^-n s. Microseconds if it is not said. */
export const INTERFACE_RESOLUTION = 9;
/** Seconds to be added to every timestamp. */
export const INTERFACE_OFFSET = 14;
export const PACKET_FLAGS = 2;
export const STATISTICS_START = 2;
export const STATISTICS_END = 3;
export const STATISTICS_RECEIVED = 4;
export const STATISTICS_DROPPED = 5;

/** The lowest two bits of a packet's flags. */
export const FLAG_DIRECTION = 3;
export const FLAG_INBOUND = 1;
export const FLAG_OUTBOUND = 2;

/** The first word of a pcap file, with timestamps in microseconds or nanoseconds. */
export const PCAP_MICROSECONDS = 0xa1b2c3d4;
export const PCAP_NANOSECONDS = 0xa1b23c4d;
export const PCAP_HEADER = 24;
export const PCAP_RECORD_HEADER = 16;

export const LINK_NULL = 0;
export const LINK_ETHERNET = 1;
/** LINKTYPE_RAW; BSD systems and old files have it by another number. */
export const LINK_RAW = 101;
export const LINK_RAW_BSD = 12;
export const LINK_LOOP = 108;
/** What `tcpdump -i any` writes. */
export const LINK_LINUX_SLL = 113;
export const LINK_IPV4 = 228;
export const LINK_IPV6 = 229;
export const LINK_LINUX_SLL2 = 276;
