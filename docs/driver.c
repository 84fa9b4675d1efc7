/* A driver of the machine in C: it checks the device, loads an image, and writes tokens. docs/driver.md explains the steps;
   registers.h is written by `tritloom generate`. Little-endian hosts; errors come back as texts, NULL is success. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "registers.h"

struct device {
    void *context;                                                    /* handed to the four functions */
    uint32_t (*read32)(void *context, uint32_t address);              /* a register */
    void (*write32)(void *context, uint32_t address, uint32_t value);
    void (*flush)(void *context);                                     /* the stripes are written: make the machine see it */
    void (*pause)(void *context);                                     /* let the machine work: sleep, or run a simulation */
    uint8_t *stripe[8];                                               /* each memory port's memory, as this program sees it */
    uint64_t base[8];                                                 /* and as the port sees it, 40 bits, a multiple of 4096 */
    uint64_t patience;                                                /* pauses without progress that are allowed */
};

#define READ(name) device->read32(device->context, TRITLOOM_##name)
#define WRITE(name, value) device->write32(device->context, TRITLOOM_##name, value)

static uint64_t word(const uint8_t *bytes, unsigned count) {
    uint64_t value = 0;
    while (count--) value = value << 8 | bytes[count];
    return value;
}

static uint32_t crc32(const uint8_t *data, uint64_t length) {
    uint32_t crc = ~0u;
    while (length--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    return ~crc;
}

static uint64_t number(const char *record, const char *key) { /* of the configuration; the record is compact JSON */
    const char *found = strstr(record, key);
    return found ? strtoull(found + strlen(key), NULL, 10) : 0;
}

static int settled(struct device *device, uint32_t busy) { /* whether these bits of STATUS become 0 in time */
    for (uint64_t waits = 0; READ(STATUS) & busy; waits++) {
        if (waits > device->patience) return 0;
        device->pause(device->context);
    }
    return 1;
}

/* End whatever runs or hangs, and forget errors and tokens. */
const char *tritloom_reset(struct device *device) {
    WRITE(CONTROL, TRITLOOM_CONTROL_RESET_MASK | TRITLOOM_CONTROL_STOP_MASK);
    if (!settled(device, TRITLOOM_STATUS_RESETTING_MASK | TRITLOOM_STATUS_RUNNING_MASK)) return "the memory does not answer";
    WRITE(CONTROL, TRITLOOM_CONTROL_CLEAR_MASK);
    return NULL;
}

static void load(struct device *device, const char *record, uint64_t address, const uint8_t *data, uint64_t length) {
    uint64_t beat = number(record, "\"mem_bytes\":"), part = beat / number(record, "\"mem_ports\":");
    if (strstr(record, "\"memory\":\"onchip\"")) {
        WRITE(MEMORY_ADDRESS, (uint32_t)address);
        for (uint64_t at = 0; at < length; at += 4) WRITE(MEMORY_DATA, (uint32_t)word(data + at, length - at < 4 ? length - at : 4));
        return;
    }
    for (uint64_t at = address; at < address + length; at++)
        device->stripe[at % beat / part][at / beat * part + at % part] = data[at - address];
}

static void words(struct device *device, uint32_t low, const uint8_t *data, uint64_t length) {
    device->write32(device->context, low - 4, 0); /* ..._ADDRESS stands before ..._LOW, and ..._HIGH behind it */
    for (uint64_t at = 0; at < length; at += 8) {
        device->write32(device->context, low, (uint32_t)word(data + at, 4));
        device->write32(device->context, low + 4, (uint32_t)word(data + at + 4, 4));
    }
}

/* Check the device and load an image, which lies in memory as the file is. */
const char *tritloom_load(struct device *device, const uint8_t *image, uint64_t size) {
    if (READ(ID) != TRITLOOM_IDENTIFIER) return "no tritloom machine is there";
    if (READ(VERSION) != TRITLOOM_MAP_VERSION) return "the machine has another register map: take its registers.h";
    if (size < 32 || memcmp(image, "TRITLOOM", 8) || word(image + 8, 4) != 2) return "not an image of version 2";
    uint64_t length = word(image + 24, 4);
    if (word(image + 16, 8) > size || 32 + length > size) return "the image is truncated";
    if (crc32(image + 32, length) != word(image + 28, 4)) return "the image's record is damaged";
    if (READ(DIGEST) != word(image + 12, 4)) return "the image was packed for another machine";
    const char *error = tritloom_reset(device);
    if (error) return error;

    char *record = calloc(length + 1, 1);
    if (!record) return "out of memory";
    memcpy(record, image + 32, length);
    for (unsigned port = 0; port < number(record, "\"mem_ports\":") && !strstr(record, "\"memory\":\"onchip\""); port++) {
        device->write32(device->context, TRITLOOM_PORT_BASE0 + 4 * port, (uint32_t)device->base[port]);
        device->write32(device->context, TRITLOOM_PORT_BASE_HIGH0 + 4 * port, (uint32_t)(device->base[port] >> 32));
    }
    const char *section = strstr(record, "\"sections\":[");
    while (!error && section && (section = strstr(section, "{\"name\":\""))) {
        char name[32];
        unsigned long long offset, bytes, crc, address;
        int fields = sscanf(section, "{\"name\":\"%31[^\"]\",\"offset\":%llu,\"length\":%llu,\"crc32\":%llu,\"address\":%llu", name, &offset,
                            &bytes, &crc, &address);
        if (fields < 4 || offset > size || bytes > size - offset) error = "the image's table of sections cannot be read";
        else if (crc32(image + offset, bytes) != crc) error = "a section of the image is damaged";
        else if (fields == 5) load(device, record, address, image + offset, bytes);
        else if (!strcmp(name, "program")) words(device, TRITLOOM_PROGRAM_LOW, image + offset, bytes);
        else if (!strcmp(name, "descriptors")) words(device, TRITLOOM_DESCRIPTOR_LOW, image + offset, bytes);
        section += 9;
    }
    free(record);
    device->flush(device->context);
    if (!error && !settled(device, TRITLOOM_STATUS_UNIT_BUSY_MASK)) error = "the memory does not take the image";
    return error || !(READ(STATUS) & TRITLOOM_STATUS_MEMORY_ERROR_MASK) ? error : "the memory answered with an error";
}

/* A text of its own: reads `prompt`, then writes up to `wanted` tokens with their cycle stamps, the likeliest ones, until `stop`
   (0xffffffff: none), which is among them. `*count` of them came, also when an error is returned. */
const char *tritloom_generate(struct device *device, const uint32_t *prompt, uint32_t length, uint32_t wanted, uint32_t stop,
                              uint32_t *tokens, uint32_t *stamps, uint32_t *count) {
    const uint32_t arguments[8] = {length, wanted, 0, stop, 0, 0xFFFF0000u, 0, 1}; /* position 0; greedy, neither top-k nor top-p */
    uint32_t fed = 0, weights = 0, data = 0, status;
    uint64_t waits = 0;
    *count = 0;
    WRITE(CONTROL, TRITLOOM_CONTROL_CLEAR_MASK);
    for (unsigned i = 0; i < 8; i++) device->write32(device->context, TRITLOOM_ARG0 + 4 * i, arguments[i]);
    WRITE(ENTRY, 0);
    WRITE(CONTROL, TRITLOOM_CONTROL_START_MASK);
    do {
        status = READ(STATUS);
        for (uint32_t room = status >> TRITLOOM_STATUS_PROMPT_ROOM_SHIFT; room && fed < length; room--) WRITE(TOKEN_IN, prompt[fed++]);
        while (READ(TOKEN_LEVEL)) {
            uint32_t stamp = READ(TOKEN_CYCLE), token = READ(TOKEN_OUT) & TRITLOOM_TOKEN_OUT_TOKEN_MASK;
            if (READ(STATUS) & TRITLOOM_STATUS_MEMORY_ERROR_MASK) return "the memory answered with an error";
            if (*count == wanted) return "the machine sent more tokens than were asked for";
            stamps[*count] = stamp, tokens[(*count)++] = token;
        }
        if (READ(STATUS) & TRITLOOM_STATUS_MEMORY_ERROR_MASK) return "the memory answered with an error";
        uint32_t read = READ(WEIGHT_BEATS_LOW), moved = READ(DATA_BEATS);
        if (read != weights || moved != data) weights = read, data = moved, waits = 0;
        else if (waits++ > device->patience) return tritloom_reset(device), "the machine came to a halt and was reset";
        device->pause(device->context);
    } while (status & TRITLOOM_STATUS_RUNNING_MASK);
    return !(status & TRITLOOM_STATUS_HALTED_MASK) || READ(HALT_CODE) ? "the program ended with an error: see STATUS and HALT_CODE" : NULL;
}
