/* A USB microphone without hardware: a USB Audio Class 1 device behind vhci_hcd, so that the kernel's own snd-usb-audio
 * drives it. The samples carry a frame counter that runs with the device's own clock from its start, whatever the bus
 * delivers of them, so every jump in a recording is the true length of what is missing.
 *
 *   usbmic PORT CONTROL [KEY=VALUE...]
 *
 * PORT is one of vhci_hcd's, 0 to 7; CONTROL a FIFO, made if it is missing, that takes the faults below, a line each.
 *
 *   rate=48000 channels=1 bits=16 ppm=0 high=0 vid=1234 pid=5678 serial=NONE name=Microphone epoch=START
 *
 * With epoch, a time of CLOCK_MONOTONIC in ns, the counter began there: it is the same one after a replug.
 *
 *   ppm X               the device's clock from now on
 *   silence MS          the bus says nothing for so long; what the device counted meanwhile is lost
 *   empty MS            packets of no length for so long; the frames are lost
 *   bad N STATUS        the next N packets, one in each ten, fail with -STATUS (71 EPROTO, 18 EXDEV) and carry nothing
 *   ragged N STATUS     the same, but their frames do arrive
 *   short N             the next N packets, one in each ten, miss their last frame; that frame is lost
 *   hang, unhang        nothing is completed and endpoint 0 is not answered; unlinking is
 *   end                 pulled out
 *
 * Each line is answered on stdout with the counter at that moment, and a `ready` comes first. What is sent late is lost:
 * a strict device. Facts of the wire: Documentation/usb/usbip_protocol.rst of the kernel, and USB Audio 1.0.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { CMD_SUBMIT = 1, CMD_UNLINK = 2, RET_SUBMIT = 3, RET_UNLINK = 4 };
enum { MOST_PACKETS = 64, MOST_PENDING = 64, MOST_BYTES = 4096, MOST_RATE = 48000, FRAME_NS = 1000000 };

struct packet {
    uint32_t offset, length, actual, status;
};

struct header { /* as on the wire, big-endian */
    uint32_t command, seqnum, devid, direction, endpoint;
    union {
        struct {
            uint32_t flags, length, start, packets, interval;
            uint8_t setup[8];
        } submit;
        struct {
            uint32_t status, actual, start, packets, errors;
            uint8_t padding[8];
        } done;
        struct {
            uint32_t seqnum;
        } unlink;
        uint8_t bytes[28];
    };
};

struct urb { /* waits for its time */
    struct header head;
    int packets;
    int64_t first; /* bus frame of its first packet */
    struct packet packet[MOST_PACKETS];
    uint8_t data[MOST_BYTES];
};

static int rate = 48000, channels = 1, bits = 16, high, vid = 0x1234, pid = 0x5678;
static const char *serial, *product = "Microphone";
static double ppm, epoch = -1;

static int bus; /* our end of the socket */
static int64_t began_ns, silent_until, empty_until;
static double counted;        /* frames at `counted_at`, a bus frame */
static int64_t counted_at;
static int64_t next_frame;    /* the first that no URB has */
static int alternate, bad, bad_status, bad_empty, shorts, turn, hung;
static struct urb *pending[MOST_PENDING];
static int waiting;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t bus_frame(void)
{
    return (now_ns() - began_ns) / FRAME_NS;
}

/* Frames that the device has counted by the beginning of a bus frame. */
static int64_t counter_at(int64_t frame)
{
    return (int64_t)floor(counted + (double)(frame - counted_at) * rate * (1 + ppm * 1e-6) / 1000);
}

static void change(int rate_hz, double value)
{
    int64_t frame = bus_frame();
    counted += (double)(frame - counted_at) * rate * (1 + ppm * 1e-6) / 1000;
    counted_at = frame;
    rate = rate_hz;
    ppm = value;
}

static void put(const void *from, size_t size)
{
    const char *bytes = from;
    while (size) {
        ssize_t sent = send(bus, bytes, size, MSG_NOSIGNAL);
        if (sent <= 0)
            exit(0); /* the kernel has let go of us */
        bytes += sent;
        size -= sent;
    }
}

static void get(void *into, size_t size)
{
    if (size && recv(bus, into, size, MSG_WAITALL) != (ssize_t)size)
        exit(0);
}

/* Samples: mono 16 bit carries the index in turns, even frames bits 0 to 15, odd ones bits 16 to 30 with bit 0 set; else
 * S16 stereo as low and high half, wider formats whole in each channel. */
static uint8_t *put_frame(uint8_t *at, int64_t index)
{
    for (int channel = 0; channel < alternate; channel++) {
        uint32_t value = (uint32_t)index;
        if (bits == 16 && alternate == 1)
            value = index & 1 ? ((index >> 16) << 1 | 1) & 0xffff : index & 0xffff;
        else if (bits == 16)
            value = channel ? index >> 16 & 0xffff : index & 0xffff;
        for (int byte = 0; byte < bits / 8; byte++)
            *at++ = value >> 8 * byte;
    }
    return at;
}

static uint8_t *put_packet(struct urb *urb, int number, uint8_t *at, uint32_t *errors)
{
    struct packet *packet = &urb->packet[number];
    int64_t frame = urb->first + number, from = counter_at(frame), to = counter_at(frame + 1);
    int width = alternate * bits / 8, room = be32toh(packet->length) / width, status = 0;
    uint8_t *start = at;
    if (began_ns + frame * FRAME_NS < empty_until)
        to = from;
    else if ((bad || shorts) && ++turn % 10 == 0) {
        if (bad) {
            bad--;
            status = bad_status;
            (*errors)++;
            if (bad_empty)
                to = from;
        } else {
            shorts--;
            to--;
        }
    }
    for (int64_t index = from; index < to && index < from + room; index++)
        at = put_frame(at, index);
    packet->actual = htobe32(at - start);
    packet->status = htobe32(-status);
    return at;
}

static void answer(struct urb *urb, int status, const void *data, size_t size, uint32_t errors)
{
    struct header head = {.command = htobe32(RET_SUBMIT), .seqnum = urb->head.seqnum};
    head.done.status = htobe32(status);
    head.done.actual = htobe32(size);
    head.done.start = htobe32(urb->first);
    head.done.packets = htobe32(urb->packets);
    head.done.errors = htobe32(errors);
    put(&head, sizeof head);
    if (!urb->head.direction)
        return; /* what came in needs no way back */
    put(data, size);
    put(urb->packet, urb->packets * sizeof *urb->packet);
}

static void complete(struct urb *urb)
{
    static uint8_t samples[MOST_BYTES * MOST_PACKETS];
    uint8_t *at = samples;
    uint32_t errors = 0;
    for (int i = 0; i < urb->packets; i++)
        at = put_packet(urb, i, at, &errors);
    answer(urb, 0, samples, at - samples, errors);
}

/* Gives a URB its place on the bus: right behind the one before it, or in the next frame where that has passed. */
static void place(struct urb *urb)
{
    int64_t soon = bus_frame() + 1;
    urb->first = next_frame < soon ? soon : next_frame;
    next_frame = urb->first + urb->packets;
}

/* Endpoint 0. Descriptors: USB 2.0 chapter 9, USB Audio 1.0 chapter 4. */

#define LE16(x) (x) & 0xff, (x) >> 8 & 0xff
#define LE24(x) LE16(x), (x) >> 16 & 0xff

static uint8_t configuration[512];

static int add(int at, const uint8_t *bytes, int size)
{
    memcpy(configuration + at, bytes, size);
    return at + size;
}

#define ADD(...) at = add(at, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void describe(void)
{
    int at = 0, unit = 8 + channels, control = 9 + 12 + unit + 9;
    ADD(9, 2, 0, 0, 2, 1, 0, 0x80, 50);
    ADD(9, 4, 0, 0, 0, 1, 1, 0, 0);                                    /* audio control */
    ADD(9, 0x24, 1, 0x00, 0x01, LE16(control), 1, 1);                  /* header */
    ADD(12, 0x24, 2, 1, 0x01, 0x02, 0, channels, LE16((1 << channels) - 1), 0, 0); /* a microphone */
    ADD(unit, 0x24, 6, 2, 1, 1, 3);                                    /* mute and volume, of all */
    for (int channel = 0; channel <= channels; channel++)
        ADD(0);                                                        /* none of its own; no name */
    ADD(9, 0x24, 3, 3, 0x01, 0x01, 0, 2, 0);                           /* to USB */
    ADD(9, 4, 1, 0, 0, 1, 2, 0, 0);                                    /* streaming: nothing */
    for (int count = 1; count <= channels; count++) {
        int width = count * bits / 8, packet = (MOST_RATE / 1000 + 2) * width;
        ADD(9, 4, 1, count, 1, 1, 2, 0, 0);
        ADD(7, 0x24, 1, 3, 1, 1, 0);
        ADD(14, 0x24, 2, 1, count, bits / 8, bits, 2, LE24(44100), LE24(48000));
        ADD(9, 5, 0x81, 5, LE16(packet), high ? 4 : 1, 0, 0);
        ADD(7, 0x25, 1, 1, 0, 0, 0);
    }
    configuration[2] = at & 0xff;
    configuration[3] = at >> 8;
}

static int string_descriptor(int number, uint8_t *into)
{
    const char *text = number == 1 ? "capstand" : number == 2 ? product : number == 3 ? serial : NULL;
    if (number == 0) {
        memcpy(into, (const uint8_t[]){4, 3, 0x09, 0x04}, 4);
        return 4;
    }
    if (!text)
        return -1;
    int size = 2;
    for (; *text && size < 250; text++) {
        into[size++] = *text;
        into[size++] = 0;
    }
    into[0] = size;
    into[1] = 3;
    return size;
}

/* The answer to a request, its length in bytes; -1: stalled. `data` holds what came along. */
static int request(const uint8_t *setup, uint8_t *data)
{
    static uint8_t mute, volume[2];
    int kind = setup[0], code = setup[1], low = setup[2], selector = setup[3];
    const uint8_t device[] = {18, 1, LE16(high ? 0x0200 : 0x0110), 0, 0, 0, 64, LE16(vid), LE16(pid),
                              LE16(0x0100), 1, 2, serial ? 3 : 0, 1};
    switch (kind << 8 | code) {
    case 0x8006: /* GET_DESCRIPTOR */
        if (selector == 1) {
            memcpy(data, device, sizeof device);
            return sizeof device;
        }
        if (selector == 2) {
            memcpy(data, configuration, sizeof configuration);
            return configuration[2] | configuration[3] << 8;
        }
        return selector == 3 ? string_descriptor(low, data) : -1;
    case 0x8000: /* GET_STATUS */
    case 0x8100:
    case 0x8200:
        memset(data, 0, 2);
        return 2;
    case 0x8008: /* GET_CONFIGURATION */
        data[0] = 1;
        return 1;
    case 0x810a: /* GET_INTERFACE */
        data[0] = setup[4] == 1 ? alternate : 0;
        return 1;
    case 0x0009: /* SET_CONFIGURATION */
    case 0x0201: /* CLEAR_FEATURE */
        return 0;
    case 0x010b: /* SET_INTERFACE */
        if (setup[4] == 1 && low <= channels)
            alternate = low;
        return 0;
    case 0x2201: /* SET_CUR of the endpoint: the rate */
        change(data[0] | data[1] << 8 | data[2] << 16, ppm);
        return 0;
    case 0xa281:
        memcpy(data, (const uint8_t[]){LE24(rate)}, 3);
        return 3;
    case 0x2101: /* SET_CUR of the feature unit */
        if (selector == 1)
            mute = data[0];
        else
            memcpy(volume, data, 2);
        return 0;
    case 0xa181: /* GET_CUR, MIN, MAX, RES of the feature unit */
        if (selector == 1) {
            data[0] = mute;
            return 1;
        }
        memcpy(data, volume, 2);
        return 2;
    case 0xa182:
    case 0xa183:
    case 0xa184: {
        int value = code == 0x82 ? -0x2000 : code == 0x83 ? 0x0800 : 0x0100;
        memcpy(data, (const uint8_t[]){LE16(value)}, 2);
        return selector == 2 ? 2 : -1;
    }
    default:
        return -1;
    }
}

static void control(struct urb *urb)
{
    const uint8_t *setup = urb->head.submit.setup;
    int wanted = setup[6] | setup[7] << 8, size = request(setup, urb->data);
    urb->packets = 0;
    if (size < 0)
        answer(urb, -EPIPE, NULL, 0, 0);
    else if (!urb->head.direction)
        answer(urb, 0, NULL, wanted, 0);
    else
        answer(urb, 0, urb->data, size < wanted ? size : wanted, 0);
}

/* What the kernel sends */

static void submitted(const struct header *head)
{
    struct urb *urb = calloc(1, sizeof *urb);
    urb->head = *head;
    int out = !head->direction, length = be32toh(head->submit.length);
    urb->packets = (int32_t)be32toh(head->submit.packets);
    if (urb->packets < 0 || !head->endpoint)
        urb->packets = 0;
    if (urb->packets > MOST_PACKETS || (out && length > MOST_BYTES) || waiting == MOST_PENDING) {
        fprintf(stderr, "usbmic: more than it is made for\n");
        exit(1);
    }
    if (out)
        get(urb->data, length);
    get(urb->packet, urb->packets * sizeof *urb->packet);
    if (!head->endpoint && !hung) {
        control(urb);
        free(urb);
        return;
    }
    if (head->endpoint)
        place(urb);
    pending[waiting++] = urb;
}

static void take(int number)
{
    free(pending[number]);
    memmove(pending + number, pending + number + 1, (--waiting - number) * sizeof *pending);
}

static void unlinked(const struct header *head)
{
    for (int i = 0; i < waiting; i++)
        if (pending[i]->head.seqnum == head->unlink.seqnum) {
            take(i);
            break;
        }
    struct header back = {.command = htobe32(RET_UNLINK), .seqnum = head->seqnum};
    back.done.status = htobe32(-ECONNRESET);
    put(&back, sizeof back);
}

static void serve(void)
{
    struct header head;
    get(&head, sizeof head);
    if (head.command == htobe32(CMD_SUBMIT))
        submitted(&head);
    else if (head.command == htobe32(CMD_UNLINK))
        unlinked(&head);
    else
        fail("usbmic: a message of another kind");
}

/* Completes what is due; the time of the next one, -1 for none. */
static int64_t run_bus(void)
{
    int64_t now = now_ns();
    if (hung)
        return -1;
    if (now < silent_until)
        return silent_until;
    if (silent_until) {
        silent_until = 0;
        for (int i = 0; i < waiting; i++)
            place(pending[i]);
    }
    while (waiting) {
        struct urb *urb = pending[0];
        int64_t due = began_ns + (urb->first + urb->packets) * FRAME_NS;
        if (due > now)
            return due;
        if (urb->head.endpoint)
            complete(urb);
        else
            control(urb);
        take(0);
    }
    return -1;
}

static void obey(char *line)
{
    char word[16] = "";
    double first = 0, second = 0;
    sscanf(line, "%15s %lf %lf", word, &first, &second);
    int64_t until = now_ns() + (int64_t)(first * 1e6);
    if (!strcmp(word, "ppm"))
        change(rate, first);
    else if (!strcmp(word, "silence"))
        silent_until = until;
    else if (!strcmp(word, "empty"))
        empty_until = until;
    else if (!strcmp(word, "bad") || !strcmp(word, "ragged")) {
        bad = (int)first;
        bad_status = (int)second;
        bad_empty = word[0] == 'b';
    } else if (!strcmp(word, "short"))
        shorts = (int)first;
    else if (!strcmp(word, "hang"))
        hung = 1;
    else if (!strcmp(word, "unhang")) {
        hung = 0;
        silent_until = 1; /* what waits gets another place */
    } else if (!strcmp(word, "end")) {
        printf("end %lld\n", (long long)counter_at(bus_frame()));
        exit(0);
    } else
        fprintf(stderr, "usbmic: what is %s\n", word);
    printf("%s %lld\n", word, (long long)counter_at(bus_frame()));
}

static void attach(int port)
{
    int ends[2], file = open("/sys/devices/platform/vhci_hcd.0/attach", O_WRONLY);
    char line[64];
    if (file < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
        fail("usbmic: vhci_hcd");
    bus = ends[0];
    int size = snprintf(line, sizeof line, "%d %d %d %d", port, ends[1], 0x10000 + port, high ? 3 : 2);
    if (write(file, line, size) != size)
        fail("usbmic: attach");
    close(ends[1]);
    close(file);
}

/* The kernel's threads for it must not be starved by those of the machine, from the first packet on. */
static void hasten(void)
{
    glob_t found;
    if (glob("/proc/[0-9]*/comm", 0, NULL, &found))
        fail("usbmic: /proc");
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char name[8] = "";
        FILE *comm = fopen(found.gl_pathv[i], "r");
        if (comm && fgets(name, sizeof name, comm) && !strncmp(name, "vhci_", 5))
            sched_setscheduler(atoi(found.gl_pathv[i] + 6), SCHED_FIFO, &(struct sched_param){.sched_priority = 94});
        if (comm)
            fclose(comm);
    }
    globfree(&found);
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: usbmic PORT CONTROL [KEY=VALUE...]\n");
        return 2;
    }
    for (int i = 3; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value)
            return 2;
        *value++ = 0;
        if (!strcmp(argv[i], "rate"))
            rate = atoi(value);
        else if (!strcmp(argv[i], "channels"))
            channels = atoi(value);
        else if (!strcmp(argv[i], "bits"))
            bits = atoi(value);
        else if (!strcmp(argv[i], "ppm"))
            ppm = atof(value);
        else if (!strcmp(argv[i], "high"))
            high = atoi(value);
        else if (!strcmp(argv[i], "vid"))
            vid = strtol(value, NULL, 16);
        else if (!strcmp(argv[i], "pid"))
            pid = strtol(value, NULL, 16);
        else if (!strcmp(argv[i], "serial"))
            serial = value;
        else if (!strcmp(argv[i], "name"))
            product = value;
        else if (!strcmp(argv[i], "epoch"))
            epoch = atof(value);
        else
            return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    mlockall(MCL_CURRENT | MCL_FUTURE);
    sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 95});
    if (mkfifo(argv[2], 0600) && errno != EEXIST)
        fail(argv[2]);
    int fifo = open(argv[2], O_RDWR | O_NONBLOCK);
    if (fifo < 0)
        fail(argv[2]);
    describe();
    began_ns = now_ns();
    if (epoch >= 0)
        counted = (began_ns - epoch) * 1e-9 * rate * (1 + ppm * 1e-6);
    attach(atoi(argv[1]));
    hasten();
    printf("ready\n");
    for (;;) {
        int64_t due = run_bus(), left = due - now_ns();
        struct timespec timeout = {left / 1000000000, left % 1000000000};
        struct pollfd polled[] = {{bus, POLLIN, 0}, {fifo, POLLIN, 0}};
        if (left > 0 || due < 0)
            ppoll(polled, 2, due < 0 ? NULL : &timeout, NULL);
        if (polled[0].revents)
            serve();
        if (polled[1].revents) {
            static char line[256];
            ssize_t size = read(fifo, line, sizeof line - 1);
            if (size > 0) {
                line[size] = 0;
                for (char *one = strtok(line, "\n"); one; one = strtok(NULL, "\n"))
                    obey(one);
            }
        }
    }
}
