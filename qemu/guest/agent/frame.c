/* Framing and the output queue. */
#include "agent.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint16_t get_le16(const uint8_t *p)
{
    return (uint16_t)(p[0] | (uint16_t)p[1] << 8);
}

uint32_t get_le32(const uint8_t *p)
{
    return (uint32_t)get_le16(p) | (uint32_t)get_le16(p + 2) << 16;
}

uint64_t get_le64(const uint8_t *p)
{
    return (uint64_t)get_le32(p) | (uint64_t)get_le32(p + 4) << 32;
}

void put_le32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

void put_le64(uint8_t *p, uint64_t v)
{
    put_le32(p, (uint32_t)v);
    put_le32(p + 4, (uint32_t)(v >> 32));
}

int frame_parse(const uint8_t *buf, size_t size, struct frame *out, size_t *used, const char **why)
{
    if (size < FRAME_HEADER)
        return 0;
    out->length = get_le32(buf);
    out->type = get_le16(buf + 4);
    out->id = get_le32(buf + 8);
    /* Judged on the header alone, so that a lying length is refused before anybody waits for its bytes. */
    if (out->length > FRAME_MAX_PAYLOAD) {
        *why = "payload longer than 65536 bytes";
        return -1;
    }
    if (get_le16(buf + 6) != 0) {
        *why = "reserved header field is not zero";
        return -1;
    }
    if (out->type < FRAME_HELLO || out->type > FRAME_TIME) {
        *why = "unknown frame type";
        return -1;
    }
    if (size - FRAME_HEADER < out->length)
        return 0;
    out->payload = buf + FRAME_HEADER;
    *used = FRAME_HEADER + out->length;
    return 1;
}

static uint8_t out[OUT_CAPACITY];
static size_t out_start, out_size;

size_t out_room(void)
{
    return OUT_CAPACITY - out_size;
}

size_t out_pending(const uint8_t **bytes)
{
    *bytes = out + out_start;
    return out_size;
}

void out_consume(size_t n)
{
    out_start += n;
    out_size -= n;
    if (out_size == 0)
        out_start = 0;
}

void out_frame(uint16_t type, uint32_t id, const void *payload, size_t length)
{
    uint8_t header[FRAME_HEADER] = {0};
    if (length > FRAME_MAX_PAYLOAD || out_room() < FRAME_HEADER + length)
        abort(); /* a caller that did not ask out_room(): a bug, not an input */
    if (OUT_CAPACITY - out_start - out_size < FRAME_HEADER + length) {
        memmove(out, out + out_start, out_size);
        out_start = 0;
    }
    put_le32(header, (uint32_t)length);
    header[4] = (uint8_t)type;
    header[5] = (uint8_t)(type >> 8);
    put_le32(header + 8, id);
    memcpy(out + out_start + out_size, header, FRAME_HEADER);
    if (length != 0)
        memcpy(out + out_start + out_size + FRAME_HEADER, payload, length);
    out_size += FRAME_HEADER + length;
}

void out_error(uint32_t id, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    out_frame(FRAME_ERROR, id, text, n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

void out_done(uint32_t id, int error)
{
    uint8_t payload[4];
    put_le32(payload, (uint32_t)error);
    out_frame(FRAME_DONE, id, payload, sizeof payload);
}
