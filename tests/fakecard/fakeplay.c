/* fakeplay: a playback device made of a counter, as an external I/O plug-in of libasound.
 *
 * All that it is given goes into a file. How much of that it has played a test says (`position`), or CLOCK_MONOTONIC
 * does, where `real` is set. It runs dry, as a card does, once it has played all that it has. When it is stopped before
 * that, the rest counts as cut off. speaker.py mirrors `struct control`; nothing here waits.
 */
#include <alsa/asoundlib.h>
#include <alsa/pcm_external.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CONTROL_BYTES 4096

/* Only 8-byte members, so that a load or store of one is whole. */
struct control {
	/* written by the test */
	int64_t position; /* frames since the beginning of time; what was played while it ran */
	int64_t real;
	int64_t suspend; /* acts once */
	int64_t disconnected;
	int64_t open_errno;
	int64_t rate_min_hz, rate_max_hz; /* the limits: 0 = as it is built, read at open */
	int64_t channels_min, channels_max;
	int64_t format_mask;   /* bit i = formats[i] */
	int64_t buffer_frames; /* the largest; of S16, two channels */
	/* written by the device */
	int64_t opens, starts, underruns;
	int64_t frames_taken, frames_cut;
	int64_t rate_hz, channels, format;
};
_Static_assert(sizeof(struct control) <= CONTROL_BYTES, "the control file is one page");

static const unsigned int formats[] = {SND_PCM_FORMAT_S16_LE, SND_PCM_FORMAT_S24_LE, SND_PCM_FORMAT_S24_3LE,
				       SND_PCM_FORMAT_S32_LE, SND_PCM_FORMAT_S16_BE, SND_PCM_FORMAT_S20_3LE,
				       SND_PCM_FORMAT_FLOAT_LE, SND_PCM_FORMAT_U8};
#define FORMATS (sizeof formats / sizeof *formats)

struct device {
	snd_pcm_ioplug_t io;
	volatile struct control *ctl;
	int ctl_fd, out_fd;
	int64_t base, given; /* the position when it was started; frames since it was prepared */
};

static int64_t position(const struct device *device)
{
	struct timespec t;

	if (!device->ctl->real)
		return device->ctl->position;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * device->io.rate + t.tv_nsec * (int64_t)device->io.rate / 1000000000;
}

static int64_t played(const struct device *device)
{
	return position(device) - device->base;
}

static void look(struct device *device)
{
	if (device->ctl->disconnected) {
		snd_pcm_ioplug_set_state(&device->io, SND_PCM_STATE_DISCONNECTED);
		return;
	}
	if (device->io.state != SND_PCM_STATE_RUNNING && device->io.state != SND_PCM_STATE_DRAINING)
		return;
	if (__atomic_exchange_n(&device->ctl->suspend, 0, __ATOMIC_SEQ_CST)) {
		snd_pcm_ioplug_set_state(&device->io, SND_PCM_STATE_SUSPENDED);
	} else if (played(device) >= device->given) {
		snd_pcm_ioplug_set_state(&device->io, SND_PCM_STATE_XRUN);
		device->ctl->underruns++;
	}
}

static int fakeplay_prepare(snd_pcm_ioplug_t *io)
{
	struct device *device = io->private_data;

	if (device->ctl->disconnected)
		return -ENODEV;
	device->given = 0;
	device->ctl->rate_hz = io->rate;
	device->ctl->channels = io->channels;
	device->ctl->format = io->format;
	return 0;
}

static int fakeplay_start(snd_pcm_ioplug_t *io)
{
	struct device *device = io->private_data;

	if (device->ctl->disconnected)
		return -ENODEV;
	device->base = position(device);
	device->ctl->starts++;
	return 0;
}

static int fakeplay_stop(snd_pcm_ioplug_t *io)
{
	struct device *device = io->private_data;

	if (device->given > played(device))
		device->ctl->frames_cut += device->given - played(device);
	return 0;
}

static snd_pcm_sframes_t fakeplay_pointer(snd_pcm_ioplug_t *io)
{
	struct device *device = io->private_data;

	look(device);
	switch (io->state) {
	case SND_PCM_STATE_XRUN:
		return -EPIPE;
	case SND_PCM_STATE_RUNNING:
	case SND_PCM_STATE_DRAINING:
		return played(device) % io->buffer_size;
	default:
		return 0;
	}
}

static snd_pcm_sframes_t fakeplay_transfer(snd_pcm_ioplug_t *io, const snd_pcm_channel_area_t *areas,
					   snd_pcm_uframes_t offset, snd_pcm_uframes_t size)
{
	struct device *device = io->private_data;
	size_t frame_bytes = snd_pcm_format_physical_width(io->format) / 8 * io->channels;
	const uint8_t *in = (const uint8_t *)areas->addr + (areas->first + areas->step * offset) / 8;

	if (device->ctl->disconnected)
		return -ENODEV;
	if (write(device->out_fd, in, size * frame_bytes) != (ssize_t)(size * frame_bytes))
		return -EIO;
	device->given += size;
	device->ctl->frames_taken += size;
	return size;
}

static int fakeplay_poll_revents(snd_pcm_ioplug_t *io, struct pollfd *pfd, unsigned int nfds, unsigned short *revents)
{
	(void)pfd;
	(void)nfds;
	look(io->private_data);
	*revents = POLLOUT;
	return 0;
}

static void release(struct device *device)
{
	if (device->ctl && device->ctl != MAP_FAILED)
		munmap((void *)device->ctl, CONTROL_BYTES);
	if (device->ctl_fd >= 0)
		close(device->ctl_fd);
	if (device->out_fd >= 0)
		close(device->out_fd);
	if (device->io.poll_fd >= 0)
		close(device->io.poll_fd);
	free(device);
}

static int fakeplay_close(snd_pcm_ioplug_t *io)
{
	release(io->private_data);
	return 0;
}

static const snd_pcm_ioplug_callback_t callbacks = {
	.start = fakeplay_start,
	.stop = fakeplay_stop,
	.pointer = fakeplay_pointer,
	.transfer = fakeplay_transfer,
	.prepare = fakeplay_prepare,
	.poll_revents = fakeplay_poll_revents,
	.close = fakeplay_close,
};

static int constrain(struct device *device)
{
	static const unsigned int access[] = {SND_PCM_ACCESS_RW_INTERLEAVED};
	volatile struct control *ctl = device->ctl;
	snd_pcm_ioplug_t *io = &device->io;
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
	    (err = snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_PERIOD_BYTES, 32, 1 << 20)) < 0)
		return err;
	return snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_BUFFER_BYTES, 64,
					       ctl->buffer_frames ? 4 * ctl->buffer_frames : 1 << 24);
}

static int admit(struct device *device, const char *ctl, const char *out)
{
	device->ctl_fd = open(ctl, O_RDWR | O_CLOEXEC);
	device->out_fd = open(out, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	if (device->ctl_fd < 0 || device->out_fd < 0)
		return -errno;
	device->ctl = mmap(NULL, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, device->ctl_fd, 0);
	if (device->ctl == MAP_FAILED)
		return -errno;
	if (device->ctl->disconnected)
		return -ENODEV;
	if (device->ctl->open_errno)
		return -device->ctl->open_errno;
	return flock(device->ctl_fd, LOCK_EX | LOCK_NB) < 0 ? -EBUSY : 0; /* one at a time, like a card */
}

SND_PCM_PLUGIN_DEFINE_FUNC(fakeplay)
{
	snd_config_iterator_t i, next;
	const char *ctl = NULL, *out = NULL;
	struct device *device;
	int err;

	(void)root;
	snd_config_for_each(i, next, conf) {
		snd_config_t *entry = snd_config_iterator_entry(i);
		const char *id;

		if (snd_config_get_id(entry, &id) < 0)
			continue;
		if (!strcmp(id, "ctl"))
			snd_config_get_string(entry, &ctl);
		if (!strcmp(id, "out"))
			snd_config_get_string(entry, &out);
	}
	if (!ctl || !out || stream != SND_PCM_STREAM_PLAYBACK)
		return -EINVAL;
	device = calloc(1, sizeof *device);
	if (!device)
		return -ENOMEM;
	device->ctl_fd = device->out_fd = -1;
	device->io.version = SND_PCM_IOPLUG_VERSION;
	device->io.name = "counter that plays a loudspeaker";
	device->io.flags = SND_PCM_IOPLUG_FLAG_MONOTONIC;
	device->io.poll_events = POLLOUT;
	device->io.callback = &callbacks;
	device->io.private_data = device;
	device->io.poll_fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
	err = device->io.poll_fd < 0 ? -errno : admit(device, ctl, out);
	if (!err)
		err = snd_pcm_ioplug_create(&device->io, name, stream, mode);
	if (err < 0) {
		release(device);
		return err;
	}
	device->ctl->opens++;
	err = constrain(device);
	if (err < 0) {
		snd_pcm_ioplug_delete(&device->io); /* closes and so releases the device */
		return err;
	}
	*pcmp = device->io.pcm;
	return 0;
}
SND_PCM_PLUGIN_SYMBOL(fakeplay);
