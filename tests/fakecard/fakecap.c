/* fakecap: a capture card made of a clock, as an external I/O plug-in of libasound.
 *
 * The card is an oscillator that runs from the first start on, whether or not anybody listens, and numbers its frames;
 * frame n carries the number n as its sound. A stream opens a window on it: at every later start the frames between the
 * last one read and the present one are booked as lost. So at any time
 *
 *     sum of the jumps in what was read  ==  frames_lost,
 *
 * over restarts and reopenings alike. The ring index that libasound wants (0 after prepare) is kept apart from n.
 *
 * Tests steer the card through `struct control`, a file mapped by both sides; __init__.py mirrors it. The plug-in looks
 * at it in every callback, which libasound makes under its own lock; nothing here waits.
 */
#include <alsa/asoundlib.h>
#include <alsa/pcm_external.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define CONTROL_BYTES 4096
#define TICK_NS 1000000

enum { COMMAND_NONE, COMMAND_OVERRUN, COMMAND_SUSPEND };

/* Only 8-byte members, so that a load or store of one is whole. */
struct control {
	/* written by the test */
	int64_t command; /* acts once, in state RUNNING */
	int64_t disconnected;
	int64_t open_errno;
	int64_t open_fault; /* 1 = whoever opens it hangs for ever, 2 = is aborted */
	int64_t stalled; /* 1 = until the test says so, 2 = until the next start, 3 = until the next open */
	int64_t io_errors; /* so many transfers fail with EIO */
	int64_t granularity_frames;
	int64_t virtual_on;
	int64_t virtual_frames;
	int64_t rate_min_hz, rate_max_hz; /* the limits: 0 = as the card is built, read at open */
	int64_t channels_min, channels_max;
	int64_t format_mask; /* bit i = formats[i] */
	int64_t period_frames, buffer_frames; /* the only ones that it has */
	int64_t extra_descriptors; /* beside the one that tells of frames; may change at any time */
	double ppm;
	int64_t changed_ns; /* since when ppm, stalled and virtual_on are what they are */
	/* written by the card */
	int64_t opens, refusals, starts, overruns;
	int64_t frames_delivered, frames_lost;
	int64_t next_frame; /* the next to be read */
	int64_t position_frames;
	int64_t rate_hz; /* 0 = never started */
	int64_t anchor_ns;
	double anchor_frames;
	double frames_per_ns;
};
_Static_assert(sizeof(struct control) <= CONTROL_BYTES, "the control file is one page");

static const unsigned int formats[] = {SND_PCM_FORMAT_S16_LE, SND_PCM_FORMAT_S24_LE, SND_PCM_FORMAT_S24_3LE,
				       SND_PCM_FORMAT_S32_LE, SND_PCM_FORMAT_S16_BE, SND_PCM_FORMAT_S20_3LE,
				       SND_PCM_FORMAT_FLOAT_LE, SND_PCM_FORMAT_U8};
#define FORMATS (sizeof formats / sizeof *formats)

struct card {
	snd_pcm_ioplug_t io;
	volatile struct control *ctl;
	int ctl_fd, idle_fd;
	snd_pcm_uframes_t avail_min;
	int64_t base;	  /* the frame at ring index 0 */
	int64_t reported; /* frames below this one may be read */
	int64_t due;	  /* when the descriptor becomes readable, as last set */
};

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Moves position_frames to `now`. A new speed counts from the moment the test wrote it, so nothing steps. */
static void advance(volatile struct control *ctl, int64_t now)
{
	int64_t turn;
	double speed, position;

	if (!ctl->rate_hz)
		return;
	speed = ctl->stalled || ctl->virtual_on ? 0 : ctl->rate_hz * (1 + ctl->ppm * 1e-6) * 1e-9;
	if (speed != ctl->frames_per_ns) {
		turn = ctl->changed_ns < now ? ctl->changed_ns : now;
		if (turn < ctl->anchor_ns)
			turn = ctl->anchor_ns;
		ctl->anchor_frames += (turn - ctl->anchor_ns) * ctl->frames_per_ns;
		ctl->anchor_ns = turn;
		ctl->frames_per_ns = speed;
	}
	if (ctl->virtual_on && ctl->virtual_frames > ctl->anchor_frames)
		ctl->anchor_frames = ctl->virtual_frames;
	position = floor(ctl->anchor_frames + (now - ctl->anchor_ns) * speed);
	if (position > ctl->position_frames)
		ctl->position_frames = position;
}

static void release_stall(volatile struct control *ctl, int64_t now)
{
	ctl->stalled = 0;
	ctl->changed_ns = now;
}

static int64_t granularity(const struct card *card)
{
	return card->ctl->granularity_frames > 0 ? card->ctl->granularity_frames : 1;
}

static int64_t unread(const struct card *card)
{
	return card->reported - card->ctl->next_frame;
}

/* Makes the descriptor readable when there will be something to say; setting the timer also empties it. */
static void arm(struct card *card)
{
	volatile struct control *ctl = card->ctl;
	struct itimerspec timer = {0};
	int running = card->io.state == SND_PCM_STATE_RUNNING;
	int64_t due = 1; /* long past: at once */

	if (running && ctl->frames_per_ns > 0 && unread(card) < (int64_t)card->avail_min) {
		int64_t step = granularity(card), wanted = ctl->next_frame + card->avail_min - card->base;
		int64_t frame = card->base + (wanted + step - 1) / step * step;

		due = ctl->anchor_ns + (frame + 0.5 - ctl->anchor_frames) / ctl->frames_per_ns;
	} else if ((running && unread(card) < (int64_t)card->avail_min) || card->io.state == SND_PCM_STATE_PREPARED) {
		due = now_ns() + TICK_NS; /* no time is known, only the test's next word */
	}
	if (due < 1)
		due = 1;
	if (due == card->due) /* as a sound card's descriptor costs nothing between interrupts */
		return;
	card->due = due;
	timer.it_value.tv_sec = due / 1000000000;
	timer.it_value.tv_nsec = due % 1000000000;
	timerfd_settime(card->io.poll_fd, TFD_TIMER_ABSTIME, &timer, NULL);
}

/* Brings the card to the present: frames that came, then faults. */
static void look(struct card *card)
{
	volatile struct control *ctl = card->ctl;
	int64_t command, step = granularity(card);

	advance(ctl, now_ns());
	if (card->io.state == SND_PCM_STATE_RUNNING) {
		int64_t whole = card->base + (ctl->position_frames - card->base) / step * step;

		if (whole > card->reported)
			card->reported = whole;
		command = __atomic_exchange_n(&ctl->command, COMMAND_NONE, __ATOMIC_SEQ_CST);
		if (command == COMMAND_SUSPEND) {
			snd_pcm_ioplug_set_state(&card->io, SND_PCM_STATE_SUSPENDED);
		} else if (command == COMMAND_OVERRUN || unread(card) >= (int64_t)card->io.buffer_size) {
			snd_pcm_ioplug_set_state(&card->io, SND_PCM_STATE_XRUN);
			ctl->overruns++;
		}
	}
	if (ctl->disconnected)
		snd_pcm_ioplug_set_state(&card->io, SND_PCM_STATE_DISCONNECTED);
	arm(card);
}

static int fakecap_prepare(snd_pcm_ioplug_t *io)
{
	struct card *card = io->private_data;

	if (card->ctl->disconnected)
		return -ENODEV;
	card->base = card->reported = card->ctl->next_frame;
	return 0;
}

static int fakecap_start(snd_pcm_ioplug_t *io)
{
	struct card *card = io->private_data;
	volatile struct control *ctl = card->ctl;
	int64_t rate_before_hz = ctl->rate_hz, now = now_ns();

	if (ctl->disconnected) {
		look(card);
		return -ENODEV;
	}
	if (rate_before_hz != io->rate) {
		advance(ctl, now);
		ctl->changed_ns = now;
		ctl->rate_hz = io->rate;
	}
	if (!rate_before_hz)
		ctl->anchor_ns = now;
	if (ctl->stalled == 2)
		release_stall(ctl, now);
	advance(ctl, now);
	if (rate_before_hz)
		ctl->frames_lost += ctl->position_frames - ctl->next_frame;
	card->base = card->reported = ctl->next_frame = ctl->position_frames;
	ctl->starts++;
	snd_pcm_ioplug_set_state(io, SND_PCM_STATE_RUNNING); /* libasound does so only after this call, too late to arm */
	arm(card);
	return 0;
}

static int fakecap_stop(snd_pcm_ioplug_t *io)
{
	snd_pcm_ioplug_set_state(io, SND_PCM_STATE_SETUP); /* as libasound will; a waiting reader wakes now */
	arm(io->private_data);
	return 0;
}

static snd_pcm_sframes_t fakecap_pointer(snd_pcm_ioplug_t *io)
{
	struct card *card = io->private_data;
	int64_t frame;

	look(card);
	if (io->state == SND_PCM_STATE_XRUN)
		return -EPIPE;
	frame = card->reported;
	/* Any negative answer means XRUN to libasound; so show a frame, which transfer then refuses with the true error. */
	if ((io->state == SND_PCM_STATE_SUSPENDED || io->state == SND_PCM_STATE_DISCONNECTED) && !unread(card))
		frame++;
	return (frame - card->base) % io->buffer_size;
}

static uint32_t sample(snd_pcm_format_t format, unsigned int channel, uint32_t n)
{
	if (format == SND_PCM_FORMAT_S32_LE)
		return n;
	if (format != SND_PCM_FORMAT_S16_LE)
		return n & 0xffffff;
	return channel % 2 ? n >> 16 : n & 0xffff;
}

static snd_pcm_sframes_t fakecap_transfer(snd_pcm_ioplug_t *io, const snd_pcm_channel_area_t *areas,
					  snd_pcm_uframes_t offset, snd_pcm_uframes_t size)
{
	struct card *card = io->private_data;
	int bytes = snd_pcm_format_physical_width(io->format) / 8;
	uint8_t *out = (uint8_t *)areas->addr + (areas->first + areas->step * offset) / 8;

	if (io->state == SND_PCM_STATE_DISCONNECTED)
		return -ENODEV;
	if (io->state == SND_PCM_STATE_SUSPENDED)
		return -ESTRPIPE;
	if (card->ctl->io_errors > 0) {
		card->ctl->io_errors--;
		return -EIO;
	}
	for (snd_pcm_uframes_t frame = 0; frame < size; frame++)
		for (unsigned int channel = 0; channel < io->channels; channel++) {
			uint32_t value = sample(io->format, channel, card->ctl->next_frame + frame);

			for (int byte = 0; byte < bytes; byte++)
				*out++ = value >> 8 * byte;
		}
	card->ctl->next_frame += size;
	card->ctl->frames_delivered += size;
	arm(card);
	return size;
}

static int fakecap_sw_params(snd_pcm_ioplug_t *io, snd_pcm_sw_params_t *params)
{
	struct card *card = io->private_data;

	return snd_pcm_sw_params_get_avail_min(params, &card->avail_min);
}

static int fakecap_poll_descriptors_count(snd_pcm_ioplug_t *io)
{
	struct card *card = io->private_data;

	return 1 + card->ctl->extra_descriptors;
}

static int fakecap_poll_descriptors(snd_pcm_ioplug_t *io, struct pollfd *pfd, unsigned int space)
{
	struct card *card = io->private_data;

	for (unsigned int i = 0; i < space; i++) {
		pfd[i].fd = i ? card->idle_fd : io->poll_fd;
		pfd[i].events = POLLIN;
	}
	return space;
}

/* Wants all of its descriptors in their order, or ends the process, as PipeWire's plug-in does.
 * As the kernel answers: silent in PREPARED, an error in every state that cannot run. */
static int fakecap_poll_revents(snd_pcm_ioplug_t *io, struct pollfd *pfd, unsigned int nfds, unsigned short *revents)
{
	struct card *card = io->private_data;

	if (nfds != (unsigned int)fakecap_poll_descriptors_count(io) || pfd[0].fd != io->poll_fd)
		abort();
	for (unsigned int i = 1; i < nfds; i++)
		if (pfd[i].fd != card->idle_fd)
			abort();
	look(card);
	if (io->state == SND_PCM_STATE_RUNNING)
		*revents = unread(card) >= (int64_t)card->avail_min ? POLLIN : 0;
	else
		*revents = io->state == SND_PCM_STATE_PREPARED ? 0 : POLLERR | POLLIN;
	return 0;
}

static void release(struct card *card)
{
	if (card->ctl && card->ctl != MAP_FAILED)
		munmap((void *)card->ctl, CONTROL_BYTES);
	if (card->ctl_fd >= 0)
		close(card->ctl_fd);
	if (card->io.poll_fd >= 0)
		close(card->io.poll_fd);
	if (card->idle_fd >= 0)
		close(card->idle_fd);
	free(card);
}

static int fakecap_close(snd_pcm_ioplug_t *io)
{
	release(io->private_data);
	return 0;
}

static const snd_pcm_ioplug_callback_t callbacks = {
	.start = fakecap_start,
	.stop = fakecap_stop,
	.pointer = fakecap_pointer,
	.transfer = fakecap_transfer,
	.prepare = fakecap_prepare,
	.sw_params = fakecap_sw_params,
	.poll_descriptors_count = fakecap_poll_descriptors_count,
	.poll_descriptors = fakecap_poll_descriptors,
	.poll_revents = fakecap_poll_revents,
	.close = fakecap_close,
};

static int fix(snd_pcm_ioplug_t *io, int type, unsigned int bytes)
{
	return snd_pcm_ioplug_set_param_minmax(io, type, bytes, bytes);
}

static int constrain(struct card *card)
{
	static const unsigned int access[] = {SND_PCM_ACCESS_RW_INTERLEAVED};
	volatile struct control *ctl = card->ctl;
	snd_pcm_ioplug_t *io = &card->io;
	unsigned int allowed[FORMATS], count = 0;
	int err;

	for (unsigned int i = 0; i < FORMATS; i++)
		if (!ctl->format_mask || ctl->format_mask >> i & 1)
			allowed[count++] = formats[i];
	if ((err = snd_pcm_ioplug_set_param_list(io, SND_PCM_IOPLUG_HW_ACCESS, 1, access)) < 0 ||
	    (err = snd_pcm_ioplug_set_param_list(io, SND_PCM_IOPLUG_HW_FORMAT, count, allowed)) < 0 ||
	    (err = snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_CHANNELS,
						   ctl->channels_min ? ctl->channels_min : 1,
						   ctl->channels_max ? ctl->channels_max : 32)) < 0 ||
	    (err = snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_RATE,
						   ctl->rate_min_hz ? ctl->rate_min_hz : 8000,
						   ctl->rate_max_hz ? ctl->rate_max_hz : 768000)) < 0 ||
	    (err = snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_PERIOD_BYTES, 32, 1 << 20)) < 0 ||
	    (err = snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_BUFFER_BYTES, 64, 1 << 24)) < 0 ||
	    (ctl->period_frames && (err = fix(io, SND_PCM_IOPLUG_HW_PERIOD_BYTES, 4 * ctl->period_frames)) < 0) ||
	    (ctl->buffer_frames && (err = fix(io, SND_PCM_IOPLUG_HW_BUFFER_BYTES, 4 * ctl->buffer_frames)) < 0))
		return err;
	return snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_PERIODS, 2, 65536);
}

/* Maps the control file, makes it first where it is missing, and refuses what a card would refuse. */
static int admit(struct card *card, const char *path)
{
	card->ctl_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	if (card->ctl_fd < 0 || ftruncate(card->ctl_fd, CONTROL_BYTES) < 0)
		return -errno;
	card->ctl = mmap(NULL, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, card->ctl_fd, 0);
	if (card->ctl == MAP_FAILED)
		return -errno;
	if (card->ctl->disconnected)
		return -ENODEV;
	if (card->ctl->open_fault == 1)
		for (;;)
			pause();
	if (card->ctl->open_fault == 2)
		abort();
	if (card->ctl->open_errno)
		return -card->ctl->open_errno;
	if (flock(card->ctl_fd, LOCK_EX | LOCK_NB) < 0) /* one opener at a time, like a card without a mixer */
		return -EBUSY;
	return 0;
}

SND_PCM_PLUGIN_DEFINE_FUNC(fakecap)
{
	snd_config_iterator_t i, next;
	const char *path = NULL;
	struct card *card;
	int err;

	(void)root;
	snd_config_for_each(i, next, conf) {
		snd_config_t *entry = snd_config_iterator_entry(i);
		const char *id;

		if (snd_config_get_id(entry, &id) >= 0 && !strcmp(id, "ctl"))
			snd_config_get_string(entry, &path);
	}
	if (!path || stream != SND_PCM_STREAM_CAPTURE)
		return -EINVAL;
	card = calloc(1, sizeof *card);
	if (!card)
		return -ENOMEM;
	card->ctl_fd = -1;
	card->avail_min = 1;
	card->io.version = SND_PCM_IOPLUG_VERSION;
	card->io.name = "clock that plays a sound card";
	card->io.flags = SND_PCM_IOPLUG_FLAG_MONOTONIC;
	card->io.poll_events = POLLIN;
	card->io.callback = &callbacks;
	card->io.private_data = card;
	card->io.poll_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	card->idle_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	err = card->io.poll_fd < 0 || card->idle_fd < 0 ? -errno : admit(card, path);
	if (!err)
		err = snd_pcm_ioplug_create(&card->io, name, stream, mode);
	if (err < 0) {
		if (card->ctl && card->ctl != MAP_FAILED)
			card->ctl->refusals++;
		release(card);
		return err;
	}
	err = constrain(card);
	if (err < 0) {
		snd_pcm_ioplug_delete(&card->io); /* closes and so releases the card */
		return err;
	}
	card->ctl->opens++;
	if (card->ctl->stalled == 3)
		release_stall(card->ctl, now_ns());
	*pcmp = card->io.pcm;
	return 0;
}
SND_PCM_PLUGIN_SYMBOL(fakecap);
