/* standin: a stand-in for Agora's proprietary libagora_rtc_sdk.so, for tests without Agora, account or network.
 *
 * The real Python wrapper (agora-python-server-sdk) loads it, resolves its symbols in it and calls it through ctypes.
 * It models what the documents say of the audio path: handles and their lifetimes, the states of a connection, callbacks
 * from a foreign thread, and the send buffer of a track, a queue of 10-ms frames that starts once it holds the send
 * delay and then loses one frame per 10 ms of the SDK's own clock. It judges the caller too: use after destroy, calls out
 * of callbacks, an observer taken away under a running callback are written down as violations, never as crashes.
 *
 * It proves that the wrapper imports, and that order, values, bytes, rates, timestamps, pacing, threads and shutdown are
 * right at the boundary. It cannot prove that Agora accepts, encodes or plays anything, nor Agora's true buffering,
 * latency, error codes or copying, nor the binary interface of the real library. Where the documents are silent a comment
 * that begins with "Assumed:" says what this file does.
 *
 * Environment, read when the library is loaded:
 *   STANDIN_LOG      file that gets one JSON line per call, callback, command, violation, warning
 *   STANDIN_PCM      file that gets every push: struct record, then its samples
 *   STANDIN_SCRIPT   commands, separated by ';' or newlines
 *   STANDIN_CONTROL  FIFO from which commands are read as long as the process lives
 *
 * Commands (standin_command(), STANDIN_SCRIPT, STANDIN_CONTROL):
 *   set NAME VALUE [COUNT]   one of `settings`; with COUNT it is back at its default after that many uses
 *   set on_connected "TIMELINE"  played after every join that succeeds
 *   play TIMELINE            on the newest live connection; TIMELINE is event[=value]:ms,… with one of `events`
 *   wake                     ends every hang that is going on
 *   mark TEXT                a line in the log
 *   report                   the counters as a line in the log
 *   reset                    counters to 0
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000LL
#define FRAME_NS (10 * MS)
#define DEFAULT_FRAMES 6000 /* documented defaults of the send buffer */
#define DEFAULT_DELAY 16
#define FALLBACK_DELAY 26 /* a delay of 0 means 260 ms, says the Go SDK */
#define SAMPLE_RATE 48000

enum { INVALID = -2, WRONG_STATE = -8, TOO_OFTEN = -12, NO_OBJECT = -1000 };
enum { DISCONNECTED = 1, CONNECTING, CONNECTED, RECONNECTING, FAILED };
enum { REASON_JOINED = 1, REASON_LEFT = 5 };

enum kind { ANY, SERVICE, FACTORY, PARAMETER, SENDER, TRACK, CONNECTION, USER, CAPABILITIES };
static const char *const kind_names[] = {"handle", "service", "factory",    "parameter",   "sender",
					 "track",  "conn",    "local_user", "capabilities"};

/* The structures of the real library, as the wrapper lays them out. */

struct svc_cfg {
	int enable_audio_processor, enable_audio_device, enable_video;
	void *context;
	char *app_id;
	unsigned int area_code;
	int channel_profile, audio_scenario, use_string_uid, domain_limit, log_level;
	char *log_file_path;
	uint32_t log_file_size_kb;
	char *data_dir, *config_dir;
};
_Static_assert(sizeof(struct svc_cfg) == 88, "as in the wrapper");

struct conn_cfg {
	int auto_subscribe_audio, auto_subscribe_video, enable_audio_recording_or_playout;
	int max_send_bitrate, min_port, max_port;
	struct {
		int packet_only, pcm_data_only;
		uint32_t bytes_per_sample, number_of_channels, sample_rate_hz;
	} subscription;
	int client_role_type, channel_profile, audio_recv_media_packet, audio_recv_encoded_frame, video_recv_media_packet;
};
_Static_assert(sizeof(struct conn_cfg) == 64, "as in the wrapper");

struct conn_info {
	uint64_t id;
	char *channel_id;
	int state;
	char *local_user_id;
	unsigned int internal_uid;
};
_Static_assert(sizeof(struct conn_info) == 40, "as in the wrapper");

struct audio_stats {
	int num_channels, sent_sample_rate, sent_bitrate, internal_codec;
	double voice_pitch;
};

struct cap_item {
	uint8_t id;
	char *name;
};
struct cap_map {
	struct cap_item *items;
	size_t size;
};
struct cap {
	struct cap_map *map;
	int type;
};

typedef void (*slot)(void);
enum { CONN_SLOTS = 31, USER_SLOTS = 37 };
struct conn_obs {
	slot slots[CONN_SLOTS];
};
struct user_obs {
	slot slots[USER_SLOTS];
};
struct cap_obs {
	slot slots[1];
};

/* What is recorded of a push; the harness unpacks it. */
struct __attribute__((packed)) record {
	int64_t ns;
	int64_t pts_ms;
	uint32_t capture_ts, frames, bytes_per_sample, channels, rate_hz;
	int32_t ret;
	uint64_t sender_id;
};

/* Settings */

struct setting {
	const char *name;
	long value, normal;
	long left; /* uses until it is normal again; 0 = it stays */
};

#define SETTINGS(X)                                                                                                   \
	X(init_ret, 0)		 /* agora_service_initialize */                                                       \
	X(ext_ret, 0)		 /* agora_service_enable_extension */                                                 \
	X(service_null, 0)	 /* 1: creating one gives NULL; so the next ones */                                   \
	X(param_null, 0)                                                                                              \
	X(conn_create_null, 0)                                                                                        \
	X(sender_null, 0)                                                                                             \
	X(track_null, 0)                                                                                              \
	X(connect_ret, 0)                                                                                             \
	X(connect_ms, 30)	 /* from connect() to on_connected */                                                 \
	X(connect_reason, 1)	 /* anything but 1: on_connection_failure with it */                                  \
	X(connect_silent, 0)	 /* 1: no callback follows connect() */                                               \
	X(disconnect_ret, 0)                                                                                          \
	X(disconnect_ms, 5)                                                                                           \
	X(disconnect_silent, 0)                                                                                       \
	X(publish_ret, 0)                                                                                             \
	X(publish_ms, 5)                                                                                              \
	X(publish_fail, 0)	 /* error of on_audio_track_publication_failure in place of success */                \
	X(unpublish_ret, 0)                                                                                           \
	X(renew_ret, 0)                                                                                               \
	X(push_ret, 0)		 /* pushes are refused with it */                                                     \
	X(hang_connect_ms, 0)	 /* the call does not return for so long; so the next ones */                         \
	X(hang_disconnect_ms, 0)                                                                                      \
	X(hang_publish_ms, 0)                                                                                         \
	X(hang_push_ms, 0)                                                                                            \
	X(hang_renew_ms, 0)                                                                                           \
	X(hang_destroy_ms, 0)	 /* agora_rtc_conn_destroy */                                                         \
	X(callback_wait_ms, 1000) /* how long an observer's running callback may hold up its removal */               \
	X(stats_ms, 2000)	 /* between on_local_audio_track_statistics */                                        \
	X(stats_mute, 0)                                                                                              \
	X(bitrate, 64)		 /* kbit/s of a stream without holes */                                               \
	X(phase_ms, 10)		 /* from the start of sending to the first frame that leaves the buffer */            \
	X(ppm, 0)		 /* how much faster than CLOCK_MONOTONIC the SDK's clock runs */                      \
	X(exit_ms, 0)		 /* how long callbacks go on when the process ends, after Python has */               \
	X(virtual, 0)		 /* 1: the buffer's clock moves only by standin_advance() */

#define AS_INDEX(name, normal) SET_##name,
enum { SETTINGS(AS_INDEX) SETTING_COUNT };
#define AS_ENTRY(name, normal) {#name, normal, normal, 0},
static struct setting settings[] = {SETTINGS(AS_ENTRY)};

/* Events: what callbacks there are, and what a timeline can name. */

enum observer { CONN_OBSERVER, USER_OBSERVER, CAP_OBSERVER, OBSERVERS };
enum signature { INFO_REASON, INFO, TOKEN, NOTHING, NUMBER, NUMBER_TEXT, TRACK_ONLY, TRACK_NUMBER, STATS, CAPS };

struct event_type {
	const char *name;
	enum observer observer;
	int slot;
	enum signature signature;
	int state; /* the connection's from then on; 0 = unchanged */
	long value; /* unless the timeline gives one */
};

enum event_name { EV_CONNECTING, EV_CONNECTED, EV_FAILED, EV_DISCONNECTED, EV_PUBSTART, EV_PUBSUCCESS, EV_PUBFAILED, EV_STATS };
static const struct event_type events[] = {
	[EV_CONNECTING] = {"connecting", CONN_OBSERVER, 2, INFO_REASON, CONNECTING, 0},
	[EV_CONNECTED] = {"connected", CONN_OBSERVER, 0, INFO_REASON, CONNECTED, REASON_JOINED},
	[EV_FAILED] = {"failed", CONN_OBSERVER, 11, INFO_REASON, FAILED, 4},
	[EV_DISCONNECTED] = {"disconnected", CONN_OBSERVER, 1, INFO_REASON, DISCONNECTED, REASON_LEFT},
	[EV_PUBSTART] = {"pubstart", USER_OBSERVER, 1, TRACK_ONLY, 0, 0},
	[EV_PUBSUCCESS] = {"pubsuccess", USER_OBSERVER, 0, TRACK_ONLY, 0, 0},
	[EV_PUBFAILED] = {"pubfailed", USER_OBSERVER, 3, TRACK_NUMBER, 0, 1},
	[EV_STATS] = {"stats", USER_OBSERVER, 5, STATS, 0, 0},
	{"unpublished", USER_OBSERVER, 2, TRACK_ONLY, 0, 0},
	{"reconnecting", CONN_OBSERVER, 3, INFO_REASON, RECONNECTING, 2},
	{"reconnected", CONN_OBSERVER, 4, INFO_REASON, CONNECTED, 15},
	{"lost", CONN_OBSERVER, 5, INFO, RECONNECTING, 16},
	{"willexpire", CONN_OBSERVER, 8, TOKEN, 0, 0},
	{"didexpire", CONN_OBSERVER, 9, NOTHING, 0, 0},
	{"license", CONN_OBSERVER, 10, NUMBER, 0, 1},
	{"error", CONN_OBSERVER, 22, NUMBER_TEXT, 0, 1},
	{"warning", CONN_OBSERVER, 23, NUMBER_TEXT, 0, 1},
	{"capabilities", CAP_OBSERVER, 0, CAPS, 0, 1}, /* 1 = AI quality of service is supported */
};
#define EVENTS (sizeof events / sizeof *events)

struct event {
	struct event *next;
	int64_t due_ns;
	const struct event_type *type;
	long value;
	bool joins; /* ends a connect(), as opposed to scripted ones */
};

/* Objects; never freed, so that a handle can be told dead at any later time. */

struct object {
	enum kind kind;
	bool alive;
	int id;
	struct object *owner; /* service of a connection, connection of a user, sender of a track … */

	/* service */
	bool initialised, audio;

	/* sender */
	struct object *track;
	int pushing;

	/* track */
	bool enabled, direct, started;
	struct object *published; /* on this connection */
	int64_t depth, max_depth, delay; /* frames of 10 ms */
	int64_t next_ns; /* when the next frame leaves */
	int64_t hole_ns; /* when the frame was missing with which the present hole began; 0 = none */
	int64_t drained, drained_told, told_ns;
	int channels;

	/* connection */
	struct object *user, *parameter, *capabilities, *sending;
	int state;
	bool leaving;
	char *token, *channel, *uid;
	unsigned int internal_uid;
	slot *observers[OBSERVERS];
	slot *running; /* the observer whose callback runs */
	int64_t stats_ns;
	struct event *queue;
	pthread_cond_t changed;

	/* capabilities observer */
	slot *slots;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct object **objects;
static int object_count;
static pthread_cond_t woken;
static unsigned int wakes;
static char *on_connected;
static int log_fd = -1, pcm_fd = -1;
static int64_t virtual_ns;
static _Thread_local bool in_callback;

static struct {
	int64_t max_depth, holes, hole_ns, refused, pushes, drained, violations, warnings;
} count;

static int64_t monotonic_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct timespec timespec_of(int64_t ns)
{
	return (struct timespec){.tv_sec = ns / 1000000000LL, .tv_nsec = ns % 1000000000LL};
}

static int64_t buffer_clock_ns(void)
{
	return settings[SET_virtual].value ? virtual_ns : monotonic_ns();
}

static long peek(int which)
{
	return settings[which].value;
}

/* The value for one use. */
static long take(int which)
{
	struct setting *s = &settings[which];
	long value = s->value;

	if (s->left > 0 && --s->left == 0)
		s->value = s->normal;
	return value;
}

/* The log */

struct line {
	size_t n;
	char text[8192];
};

static __attribute__((format(printf, 2, 3))) void add(struct line *l, const char *format, ...)
{
	va_list list;
	int n;

	va_start(list, format);
	n = vsnprintf(l->text + l->n, sizeof l->text - l->n, format, list);
	va_end(list);
	if (n > 0)
		l->n += (size_t)n < sizeof l->text - l->n ? (size_t)n : sizeof l->text - l->n - 1;
}

static void add_string(struct line *l, const char *s)
{
	if (!s) {
		add(l, "null");
		return;
	}
	add(l, "\"");
	for (; *s && l->n < sizeof l->text - 256; s++) {
		if (*s == '"' || *s == '\\')
			add(l, "\\%c", *s);
		else if ((unsigned char)*s < 0x20)
			add(l, "\\u%04x", *s);
		else
			add(l, "%c", *s);
	}
	add(l, "\"");
}

static void begin(struct line *l, int64_t ns)
{
	char thread[17] = "";

	prctl(PR_GET_NAME, thread);
	l->n = 0;
	add(l, "{\"ns\":%lld,\"tid\":%ld,\"thread\":", (long long)ns, syscall(SYS_gettid));
	add_string(l, thread);
}

/* One write, so that lines of several threads do not mix. */
static void end(struct line *l)
{
	int saved = errno;

	add(l, "}\n");
	if (log_fd >= 0 && write(log_fd, l->text, l->n) < 0)
		perror("standin: STANDIN_LOG");
	errno = saved;
}

static void note(const char *what, const char *text, const char *call)
{
	struct line l;

	begin(&l, monotonic_ns());
	add(&l, ",\"%s\":", what);
	add_string(&l, text);
	if (call) {
		add(&l, ",\"in\":");
		add_string(&l, call);
	}
	end(&l);
}

static void violation(const char *call, const char *text)
{
	count.violations++;
	note("violation", text, call);
}

static void warning(const char *call, const char *text)
{
	count.warnings++;
	note("warning", text, call);
}

/* Handles: not addresses, so that a stray one is recognised and never followed. */

#define HANDLE_BASE 0x5a0000000000ULL

static void *handle_of(const struct object *o)
{
	return o ? (void *)(uintptr_t)(HANDLE_BASE + 16ULL * (unsigned int)o->id) : NULL;
}

static struct object *object_of(const void *handle)
{
	uint64_t at = (uint64_t)(uintptr_t)handle;
	uint64_t id = (at - HANDLE_BASE) / 16;

	if (at < HANDLE_BASE || at % 16 || id < 1 || id > (uint64_t)object_count)
		return NULL;
	return objects[id - 1];
}

static struct object *create(enum kind kind, struct object *owner)
{
	struct object *o = calloc(1, sizeof *o);
	struct object **grown = realloc(objects, (size_t)(object_count + 1) * sizeof *objects);

	if (!o || !grown)
		abort();
	objects = grown;
	objects[object_count++] = o;
	o->kind = kind;
	o->alive = true;
	o->id = object_count;
	o->owner = owner;
	return o;
}

static struct object *newest(enum kind kind)
{
	for (int i = object_count - 1; i >= 0; i--)
		if (objects[i]->alive && objects[i]->kind == kind)
			return objects[i];
	return NULL;
}

/* A call: enter() takes the lock, leave() writes the line and gives the lock back. */

struct call {
	const char *name;
	int64_t ns;
	const char *separator;
	struct line args;
};

static void arg_number(struct call *c, const char *key, long long value)
{
	add(&c->args, "%s\"%s\":%lld", c->separator, key, value);
	c->separator = ",";
}

static void arg_string(struct call *c, const char *key, const char *value)
{
	add(&c->args, "%s\"%s\":", c->separator, key);
	add_string(&c->args, value);
	c->separator = ",";
}

static void arg_handle(struct call *c, const char *key, const void *handle)
{
	const struct object *o = object_of(handle);

	arg_number(c, key, o ? o->id : 0);
}

/* The live object behind a handle, or NULL and a violation. */
static struct object *resolve(const char *call, const void *handle, enum kind kind)
{
	struct object *o = object_of(handle);
	char text[128];

	if (o && o->alive && (kind == ANY || o->kind == kind))
		return o;
	snprintf(text, sizeof text, "%s handle, %s wanted", !handle ? "NULL" : !o ? "unknown" : o->alive ? "wrong" : "destroyed",
		 kind_names[kind]);
	violation(call, text);
	return NULL;
}

static struct object *enter(struct call *c, const char *name, const void *handle, enum kind kind)
{
	c->name = name;
	c->ns = monotonic_ns();
	c->separator = "";
	c->args.n = 0;
	c->args.text[0] = 0;
	pthread_mutex_lock(&lock);
	if (in_callback)
		violation(name, "SDK call inside a callback");
	arg_handle(c, kind_names[kind], handle);
	return resolve(name, handle, kind);
}

static long leave(struct call *c, long ret)
{
	struct line l;

	begin(&l, c->ns);
	add(&l, ",\"call\":\"%s\",\"args\":{%.*s},\"ret\":%ld", c->name, (int)(c->args.n < 7500 ? c->args.n : 0), c->args.text,
	    ret);
	end(&l);
	pthread_mutex_unlock(&lock);
	return ret;
}

static void *leave_handle(struct call *c, const struct object *o)
{
	leave(c, o ? o->id : 0);
	return handle_of(o);
}

/* Waits without the lock if the setting says so, or until `wake`. */
static void hang(const char *call, int which)
{
	long ms = take(which);
	struct timespec t = timespec_of(monotonic_ns() + ms * MS);
	unsigned int before = wakes;

	if (ms <= 0)
		return;
	note("hang", settings[which].name, call);
	while (wakes == before && pthread_cond_timedwait(&woken, &lock, &t) != ETIMEDOUT)
		;
}

/* The send buffer */

static int64_t interval_ns(void)
{
	return llround((double)FRAME_NS / (1 + (double)peek(SET_ppm) * 1e-6));
}

/* Assumed: nothing leaves while the connection reconnects, and what is buffered stays. */
static bool draining(const struct object *t)
{
	return !t->direct && t->enabled && t->published && t->published->state == CONNECTED && !t->published->leaving;
}

/* Brings the buffer to `now`. Assumed: after a hole, sending starts anew once the buffer holds the send delay. */
static void advance(struct object *t, int64_t now)
{
	int64_t interval = interval_ns(), ticks;

	if (!draining(t))
		return;
	if (!t->started) {
		if (t->depth < t->delay)
			return;
		t->started = true;
		if (t->hole_ns) {
			if (now >= t->next_ns)
				t->next_ns += ((now - t->next_ns) / interval + 1) * interval;
			count.hole_ns += t->next_ns - t->hole_ns;
			t->hole_ns = 0;
		} else {
			t->next_ns = now + peek(SET_phase_ms) * MS;
		}
	}
	ticks = now >= t->next_ns ? (now - t->next_ns) / interval + 1 : 0;
	if (ticks <= t->depth) {
		t->depth -= ticks;
		t->next_ns += ticks * interval;
	} else {
		ticks = t->depth;
		t->depth = 0;
		t->next_ns += ticks * interval;
		t->started = false;
		t->hole_ns = t->next_ns;
		count.holes++;
	}
	t->drained += ticks;
	count.drained += ticks;
}

/* What ends here is no hole any more, and the next start counts afresh. */
static void halt(struct object *t, int64_t now)
{
	advance(t, now);
	if (t->hole_ns)
		count.hole_ns += now - t->hole_ns;
	t->hole_ns = 0;
	t->started = false;
}

static int push(struct object *t, int64_t frames, int64_t now)
{
	if (!t->enabled)
		return 0;
	if (t->direct) {
		t->drained += frames;
		count.drained += frames;
		return 0;
	}
	advance(t, now);
	if (t->depth + frames > t->max_depth)
		return TOO_OFTEN;
	t->depth += frames;
	if (t->depth > count.max_depth)
		count.max_depth = t->depth;
	advance(t, now);
	return 0;
}

/* Connections */

static void set_state(struct object *c, int state)
{
	int64_t now = buffer_clock_ns();

	if (c->sending && state != CONNECTED)
		halt(c->sending, now);
	if (state == CONNECTED && c->state != CONNECTED)
		c->stats_ns = monotonic_ns() + peek(SET_stats_ms) * MS;
	c->state = state;
	if (c->sending) {
		advance(c->sending, now);
		c->sending->told_ns = now;
		c->sending->drained_told = c->sending->drained;
	}
}

static void schedule(struct object *c, const struct event_type *type, long value, int64_t due_ns, bool joins)
{
	struct event *e = malloc(sizeof *e), **at = &c->queue;

	if (!e)
		abort();
	while (*at && (*at)->due_ns <= due_ns)
		at = &(*at)->next;
	*e = (struct event){*at, due_ns, type, value, joins};
	*at = e;
	pthread_cond_broadcast(&c->changed);
}

static void schedule_ms(struct object *c, enum event_name name, long value, long ms, bool joins)
{
	schedule(c, &events[name], value, monotonic_ns() + ms * MS, joins);
}

static void cancel_events(struct object *c)
{
	struct event *e;

	while ((e = c->queue)) {
		c->queue = e->next;
		free(e);
	}
}

static int play(struct object *c, const char *timeline)
{
	char name[32];
	int64_t now = monotonic_ns();

	while (*timeline) {
		const struct event_type *type = NULL;
		long value, ms;
		int n = 0;
		char *stop;

		if (sscanf(timeline, " %31[a-z]%n", name, &n) != 1)
			return -1;
		timeline += n;
		for (size_t i = 0; i < EVENTS; i++)
			if (!strcmp(events[i].name, name))
				type = &events[i];
		if (!type)
			return -1;
		value = type->value;
		if (*timeline == '=') {
			value = strtol(timeline + 1, &stop, 0);
			timeline = stop;
		}
		if (*timeline++ != ':')
			return -1;
		ms = strtol(timeline, &stop, 10);
		if (stop == timeline)
			return -1;
		timeline = stop;
		while (*timeline == ' ' || *timeline == ',')
			timeline++;
		schedule(c, type, value, now + ms * MS, false);
	}
	return 0;
}

static long bitrate_since_told(struct object *t)
{
	int64_t now = buffer_clock_ns(), sent, passed;
	long normal = peek(SET_bitrate), rate;

	advance(t, now);
	sent = (t->drained - t->drained_told) * FRAME_NS;
	passed = now - t->told_ns;
	t->told_ns = now;
	t->drained_told = t->drained;
	rate = passed > 0 ? lround((double)normal * (double)sent / (double)passed) : 0;
	return rate < normal ? rate : normal;
}

static char *text_or_empty(const char *s)
{
	char *copy = strdup(s ? s : "");

	if (!copy)
		abort();
	return copy;
}

/* Makes one callback. Called with the lock, which is free while the callback runs. */
static void callback(struct object *c, const struct event_type *type, long value)
{
	slot *slots = c->observers[type->observer];
	slot call = slots ? slots[type->slot] : NULL;
	void *conn = handle_of(c), *user = handle_of(c->user), *track = handle_of(c->sending);
	struct conn_info info = {.id = (uint64_t)c->id,
				 .channel_id = text_or_empty(c->channel),
				 .state = c->state,
				 .local_user_id = text_or_empty(c->uid),
				 .internal_uid = c->internal_uid};
	char *token = text_or_empty(c->token);
	struct audio_stats stats = {.num_channels = c->sending ? c->sending->channels : 0,
				    .sent_sample_rate = SAMPLE_RATE,
				    .sent_bitrate = (int)value};
	struct cap_item item = {1, value ? "SUPPORT" : "NONE"};
	struct cap_map map = {&item, 1};
	struct cap cap = {&map, 19};
	void *capabilities = handle_of(c->capabilities);
	struct line l;

	begin(&l, monotonic_ns());
	add(&l, ",\"callback\":\"%s\",\"args\":{\"conn\":%d,\"state\":%d,\"value\":%ld},\"delivered\":%s", type->name, c->id,
	    c->state, value, call ? "true" : "false");
	end(&l);
	if (call) {
		c->running = slots;
		pthread_mutex_unlock(&lock);
		in_callback = true;
		switch (type->signature) {
		case INFO_REASON:
			((void (*)(void *, struct conn_info *, int))call)(conn, &info, (int)value);
			break;
		case INFO:
			((void (*)(void *, struct conn_info *))call)(conn, &info);
			break;
		case TOKEN:
			((void (*)(void *, const char *))call)(conn, token);
			break;
		case NOTHING:
			((void (*)(void *))call)(conn);
			break;
		case NUMBER:
			((void (*)(void *, int))call)(conn, (int)value);
			break;
		case NUMBER_TEXT:
			((void (*)(void *, int, const char *))call)(conn, (int)value, "from the stand-in");
			break;
		case TRACK_ONLY:
			((void (*)(void *, void *))call)(user, track);
			break;
		case TRACK_NUMBER:
			((void (*)(void *, void *, int))call)(user, track, (int)value);
			break;
		case STATS:
			((void (*)(void *, struct audio_stats *))call)(user, &stats);
			break;
		case CAPS:
			((void (*)(void *, struct cap *, int))call)(capabilities, &cap, 1);
			break;
		}
		in_callback = false;
		pthread_mutex_lock(&lock);
		c->running = NULL;
		pthread_cond_broadcast(&c->changed);
	}
	free(info.channel_id);
	free(info.local_user_id);
	free(token);
}

static void told_published(struct object *c, long ms)
{
	long error = take(SET_publish_fail);

	if (error)
		schedule_ms(c, EV_PUBFAILED, error, ms, false);
	else
		schedule_ms(c, EV_PUBSUCCESS, 0, ms, false);
}

static void happen(struct object *c, const struct event *e)
{
	if (e->type->state) {
		set_state(c, e->type->state);
		if (e->type->state == DISCONNECTED)
			c->leaving = false;
	}
	if (e->joins && e->type == &events[EV_CONNECTED]) {
		if (c->sending)
			told_published(c, peek(SET_publish_ms));
		if (on_connected)
			play(c, on_connected);
	}
	callback(c, e->type, e->value);
}

/* The thread all callbacks of one connection come from. */
static void *dispatch(void *conn)
{
	struct object *c = conn;

	prctl(PR_SET_NAME, "agora-cb");
	pthread_mutex_lock(&lock);
	while (c->alive) {
		int64_t now = monotonic_ns(), due = INT64_MAX;
		bool counts = c->sending && c->state == CONNECTED && !c->leaving;
		struct event *e = c->queue;
		struct timespec t;

		if (e && e->due_ns <= now) {
			c->queue = e->next;
			happen(c, e);
			free(e);
			continue;
		}
		if (counts && c->stats_ns <= now) {
			long rate = bitrate_since_told(c->sending);

			c->stats_ns = now + peek(SET_stats_ms) * MS;
			if (!peek(SET_stats_mute))
				callback(c, &events[EV_STATS], rate);
			continue;
		}
		if (e)
			due = e->due_ns;
		if (counts && c->stats_ns < due)
			due = c->stats_ns;
		if (due == INT64_MAX) {
			pthread_cond_wait(&c->changed, &lock);
			continue;
		}
		t = timespec_of(due);
		pthread_cond_timedwait(&c->changed, &lock, &t);
	}
	pthread_mutex_unlock(&lock);
	return NULL;
}

/* Assumed: taking an observer away waits for its running callback. One that does not return is a violation. */
static void wait_for_callback(struct object *c, const slot *slots, const char *call)
{
	struct timespec t = timespec_of(monotonic_ns() + peek(SET_callback_wait_ms) * MS);

	if (in_callback || !slots || c->running != slots)
		return;
	warning(call, "its observer's callback is running");
	while (c->running == slots)
		if (pthread_cond_timedwait(&c->changed, &lock, &t) == ETIMEDOUT)
			break;
	if (c->running == slots)
		violation(call, "observer taken away while its callback runs");
}

static void monotonic_condition(pthread_cond_t *condition)
{
	pthread_condattr_t attributes;

	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(condition, &attributes);
	pthread_condattr_destroy(&attributes);
}

/* Signals are for the program's own threads. */
static void start_thread(void *(*body)(void *), void *argument)
{
	pthread_t thread;
	sigset_t all, old;
	int failed;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	failed = pthread_create(&thread, NULL, body, argument);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (failed)
		abort();
	pthread_detach(thread);
}

/* Commands */

static int64_t live_hole_ns(void)
{
	int64_t now = buffer_clock_ns(), sum = 0;

	for (int i = 0; i < object_count; i++)
		if (objects[i]->kind == TRACK && objects[i]->alive) {
			advance(objects[i], now);
			if (objects[i]->hole_ns)
				sum += now - objects[i]->hole_ns;
		}
	return sum;
}

static double counter(const char *name)
{
	int64_t hole_ns = live_hole_ns(), alive = 0;
	const struct object *track = newest(TRACK);

	for (int i = 0; i < object_count; i++)
		alive += objects[i]->alive;
	if (!strcmp(name, "depth_ms"))
		return track ? 10.0 * (double)track->depth : 0;
	if (!strcmp(name, "max_depth_ms"))
		return 10.0 * (double)count.max_depth;
	if (!strcmp(name, "holes"))
		return (double)count.holes;
	if (!strcmp(name, "hole_ms"))
		return (double)(count.hole_ns + hole_ns) / (double)MS;
	if (!strcmp(name, "refused"))
		return (double)count.refused;
	if (!strcmp(name, "pushes"))
		return (double)count.pushes;
	if (!strcmp(name, "drained_frames"))
		return (double)count.drained;
	if (!strcmp(name, "alive_handles"))
		return (double)alive;
	if (!strcmp(name, "violations"))
		return (double)count.violations;
	if (!strcmp(name, "warnings"))
		return (double)count.warnings;
	return NAN;
}

static void report(void)
{
	static const char *const names[] = {"depth_ms", "max_depth_ms",	  "holes",	   "hole_ms",	 "refused",
					    "pushes",	"drained_frames", "alive_handles", "violations", "warnings"};
	struct line l;

	begin(&l, monotonic_ns());
	add(&l, ",\"report\":{");
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		add(&l, "%s\"%s\":%.3f", i ? "," : "", names[i], counter(names[i]));
	add(&l, "}");
	end(&l);
}

static void reset(void)
{
	int64_t now = buffer_clock_ns();

	live_hole_ns();
	memset(&count, 0, sizeof count);
	for (int i = 0; i < object_count; i++)
		if (objects[i]->hole_ns)
			objects[i]->hole_ns = now;
}

static int set(const char *rest)
{
	char name[32];
	long value, uses = 0;
	int n = 0;

	if (sscanf(rest, "%31s %n", name, &n) != 1 || !n)
		return -1;
	if (!strcmp(name, "on_connected")) {
		size_t size = strcspn(rest + n + (rest[n] == '"'), "\"");

		free(on_connected);
		on_connected = strndup(rest + n + (rest[n] == '"'), size);
		return 0;
	}
	if (sscanf(rest + n, "%ld %ld", &value, &uses) < 1)
		return -1;
	for (int i = 0; i < SETTING_COUNT; i++) {
		if (strcmp(settings[i].name, name))
			continue;
		live_hole_ns(); /* up to here the old clock counts */
		if (i == SET_virtual && value && !settings[i].value)
			virtual_ns = monotonic_ns();
		settings[i].value = value;
		settings[i].left = uses;
		for (int k = 0; i == SET_stats_ms && k < object_count; k++)
			if (objects[k]->kind == CONNECTION && objects[k]->alive) {
				objects[k]->stats_ns = monotonic_ns() + value * MS;
				pthread_cond_broadcast(&objects[k]->changed);
			}
		return 0;
	}
	return -1;
}

static int command(char *line)
{
	struct object *c;
	char verb[16] = "";
	int n = 0, result = -1;

	while (*line == ' ' || *line == '\t')
		line++;
	for (n = (int)strlen(line); n > 0 && strchr(" \t\r", line[n - 1]);)
		line[--n] = 0;
	n = 0;
	if (!*line)
		return 0;
	sscanf(line, "%15s %n", verb, &n);
	pthread_mutex_lock(&lock);
	if (!strcmp(verb, "mark")) {
		note("mark", n ? line + n : "", NULL);
		result = 0;
	} else if (!strcmp(verb, "report")) {
		report();
		result = 0;
	} else if (!strcmp(verb, "reset")) {
		reset();
		result = 0;
	} else if (!strcmp(verb, "wake")) {
		wakes++;
		pthread_cond_broadcast(&woken);
		result = 0;
	} else if (!strcmp(verb, "set") && n) {
		result = set(line + n);
	} else if (!strcmp(verb, "play") && n) {
		c = newest(CONNECTION);
		result = c ? play(c, line + n) : -1;
	}
	if (result)
		violation(line, "the stand-in cannot do this command");
	else
		note("command", line, NULL);
	pthread_mutex_unlock(&lock);
	return result;
}

int standin_command(const char *line)
{
	char *copy = text_or_empty(line), *rest = copy, *one;
	int result = 0;

	while ((one = strsep(&rest, ";\n")))
		if (command(one))
			result = -1;
	free(copy);
	return result;
}

double standin_get(const char *name)
{
	double value;

	pthread_mutex_lock(&lock);
	value = counter(name);
	pthread_mutex_unlock(&lock);
	return value;
}

void standin_advance(int64_t ns)
{
	pthread_mutex_lock(&lock);
	virtual_ns += ns;
	live_hole_ns();
	pthread_mutex_unlock(&lock);
}

static void *control(void *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC); /* both ways, so that it never ends */
	FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
	char *line = NULL;
	size_t size = 0;

	prctl(PR_SET_NAME, "standin-ctl");
	if (!file)
		perror("standin: STANDIN_CONTROL");
	else /* exit() of glibc 2.41 waits for the lock that a reader holds */
		__fsetlocking(file, FSETLOCKING_BYCALLER);
	while (file && getline(&line, &size, file) >= 0)
		standin_command(line);
	return NULL;
}

/* The end of the process, when Python has been taken down: the destructors of a large library take
 * their time, and its threads go on. */
static void linger(void)
{
	if (!peek(SET_exit_ms) || pthread_mutex_trylock(&lock)) /* held for ever where it was forked */
		return;
	for (int i = 0; i < object_count; i++)
		if (objects[i]->kind == CONNECTION && objects[i]->alive)
			play(objects[i], "warning:0,stats:1");
	pthread_mutex_unlock(&lock);
	usleep((useconds_t)peek(SET_exit_ms) * 1000);
}

__attribute__((constructor)) static void load(void)
{
	const char *log = getenv("STANDIN_LOG"), *pcm = getenv("STANDIN_PCM"), *script = getenv("STANDIN_SCRIPT");
	char *fifo = getenv("STANDIN_CONTROL"), pid[16];

	monotonic_condition(&woken);
	if (log && *log)
		log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (pcm && *pcm)
		pcm_fd = open(pcm, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	snprintf(pid, sizeof pid, "%d", (int)getpid());
	note("loaded", pid, NULL);
	if (script && *script)
		standin_command(script);
	if (fifo && *fifo)
		start_thread(control, text_or_empty(fifo));
	atexit(linger);
}

/* The calls: service */

void *agora_service_create(void)
{
	struct call c = {.name = __func__, .ns = monotonic_ns(), .separator = ""};
	struct object *s;

	pthread_mutex_lock(&lock);
	if (in_callback)
		violation(__func__, "SDK call inside a callback");
	s = take(SET_service_null) ? NULL : create(SERVICE, NULL);
	return leave_handle(&c, s);
}

int agora_service_initialize(void *handle, const struct svc_cfg *cfg)
{
	static bool before;
	struct call c;
	struct object *s = enter(&c, __func__, handle, SERVICE);
	long ret = NO_OBJECT;

	if (cfg) {
		arg_string(&c, "app_id", cfg->app_id);
		arg_number(&c, "enable_audio_processor", cfg->enable_audio_processor);
		arg_number(&c, "enable_audio_device", cfg->enable_audio_device);
		arg_number(&c, "enable_video", cfg->enable_video);
		arg_number(&c, "area_code", cfg->area_code);
		arg_number(&c, "channel_profile", cfg->channel_profile);
		arg_number(&c, "audio_scenario", cfg->audio_scenario);
		arg_number(&c, "use_string_uid", cfg->use_string_uid);
		arg_number(&c, "domain_limit", cfg->domain_limit);
		arg_number(&c, "log_level", cfg->log_level);
		arg_string(&c, "log_file_path", cfg->log_file_path);
		arg_number(&c, "log_file_size_kb", cfg->log_file_size_kb);
		arg_string(&c, "data_dir", cfg->data_dir);
		arg_string(&c, "config_dir", cfg->config_dir);
	}
	if (s) {
		if (before)
			warning(__func__, "initialised more than once in one process");
		before = true;
		ret = cfg ? take(SET_init_ret) : INVALID;
		s->initialised = ret == 0;
		s->audio = cfg && cfg->enable_audio_processor;
	}
	return (int)leave(&c, ret);
}

int agora_service_release(void *handle)
{
	struct call c;
	struct object *s = enter(&c, __func__, handle, SERVICE);

	if (!s)
		return (int)leave(&c, NO_OBJECT);
	for (int i = 0; i < object_count; i++) {
		const struct object *o = objects[i];

		if (o->alive && (o->kind == CONNECTION || o->kind == TRACK || o->kind == SENDER))
			violation(__func__, o->kind == CONNECTION ? "service released before a connection"
								  : "service released before a track or sender");
	}
	if (s->parameter)
		s->parameter->alive = false;
	s->alive = false;
	return (int)leave(&c, 0);
}

int agora_service_enable_extension(void *handle, const char *provider, const char *extension, const char *track, unsigned int on)
{
	struct call c;
	struct object *s = enter(&c, __func__, handle, SERVICE);

	arg_string(&c, "provider", provider);
	arg_string(&c, "extension", extension);
	arg_string(&c, "track_id", track);
	arg_number(&c, "enable", on);
	return (int)leave(&c, s ? take(SET_ext_ret) : NO_OBJECT);
}

static void *parameter_of(const char *name, void *handle, enum kind kind)
{
	struct call c;
	struct object *o = enter(&c, name, handle, kind);

	if (o && !o->parameter)
		o->parameter = create(PARAMETER, o);
	return leave_handle(&c, o && !take(SET_param_null) ? o->parameter : NULL);
}

void *agora_service_get_agora_parameter(void *handle)
{
	return parameter_of(__func__, handle, SERVICE);
}

void *agora_rtc_conn_get_agora_parameter(void *handle)
{
	return parameter_of(__func__, handle, CONNECTION);
}

int agora_parameter_set_int(void *handle, const char *key, int value)
{
	struct call c;
	struct object *p = enter(&c, __func__, handle, PARAMETER);

	arg_string(&c, "key", key);
	arg_number(&c, "value", value);
	return (int)leave(&c, p ? 0 : NO_OBJECT);
}

int agora_parameter_set_parameters(void *handle, const char *json)
{
	struct call c;
	struct object *p = enter(&c, __func__, handle, PARAMETER);

	arg_string(&c, "parameters", json);
	return (int)leave(&c, p ? 0 : NO_OBJECT);
}

void *agora_service_create_media_node_factory(void *handle)
{
	struct call c;
	struct object *s = enter(&c, __func__, handle, SERVICE);

	return leave_handle(&c, s ? create(FACTORY, s) : NULL);
}

void agora_media_node_factory_destroy(void *handle)
{
	struct call c;
	struct object *f = enter(&c, __func__, handle, FACTORY);

	if (f)
		f->alive = false;
	leave(&c, f ? 0 : NO_OBJECT);
}

/* Sender and track */

void *agora_media_node_factory_create_audio_pcm_data_sender(void *handle)
{
	struct call c;
	struct object *f = enter(&c, __func__, handle, FACTORY);

	return leave_handle(&c, f && !take(SET_sender_null) ? create(SENDER, f) : NULL);
}

static void *create_track(const char *name, void *service, void *sender, bool direct)
{
	struct call c;
	struct object *s = enter(&c, name, service, SERVICE), *from, *t = NULL;

	arg_handle(&c, "sender", sender);
	from = s ? resolve(name, sender, SENDER) : NULL;
	if (from && s->audio && !take(SET_track_null)) {
		t = create(TRACK, from);
		t->direct = direct;
		t->max_depth = DEFAULT_FRAMES;
		t->delay = DEFAULT_DELAY;
		from->track = t;
	}
	return leave_handle(&c, t);
}

void *agora_service_create_custom_audio_track_pcm(void *service, void *sender)
{
	return create_track(__func__, service, sender, false);
}

void *agora_service_create_direct_custom_audio_track_pcm(void *service, void *sender)
{
	return create_track(__func__, service, sender, true);
}

int agora_local_audio_track_set_enabled(void *handle, int enabled)
{
	struct call c;
	struct object *t = enter(&c, __func__, handle, TRACK);

	arg_number(&c, "enabled", enabled);
	if (t) {
		halt(t, buffer_clock_ns());
		t->enabled = enabled;
		advance(t, buffer_clock_ns());
	}
	return (int)leave(&c, t ? 0 : NO_OBJECT);
}

void agora_local_audio_track_set_max_bufferd_frame_number(void *handle, int frames)
{
	struct call c;
	struct object *t = enter(&c, __func__, handle, TRACK);

	arg_number(&c, "frames", frames);
	if (t && t->published)
		warning(__func__, "ignored, as the track is published");
	else if (t && frames < 1)
		warning(__func__, "ignored, as it is below 1");
	else if (t)
		t->max_depth = frames;
	leave(&c, t ? 0 : NO_OBJECT);
}

void agora_local_audio_track_set_send_delay_ms(void *handle, int ms)
{
	struct call c;
	struct object *t = enter(&c, __func__, handle, TRACK);

	arg_number(&c, "ms", ms);
	if (t && ms == 0) {
		warning(__func__, "0 means 260 ms");
		t->delay = FALLBACK_DELAY;
	} else if (t && (ms < 0 || ms % 10 || ms >= 10 * t->max_depth)) {
		warning(__func__, "ignored, as it is no multiple of 10 between 0 and the buffer's size");
	} else if (t) {
		advance(t, buffer_clock_ns());
		t->delay = ms / 10;
		advance(t, buffer_clock_ns());
	}
	leave(&c, t ? 0 : NO_OBJECT);
}

int agora_local_audio_track_clear_sender_buffer(void *handle)
{
	struct call c;
	struct object *t = enter(&c, __func__, handle, TRACK);

	if (t) {
		halt(t, buffer_clock_ns());
		t->depth = 0;
	}
	return (int)leave(&c, t ? 0 : NO_OBJECT);
}

static void withdraw(struct object *t)
{
	halt(t, buffer_clock_ns());
	if (t->published && t->published->sending == t)
		t->published->sending = NULL;
	t->published = NULL;
}

void agora_local_audio_track_destroy(void *handle)
{
	struct call c;
	struct object *t = enter(&c, __func__, handle, TRACK);

	if (t) {
		if (t->published)
			violation(__func__, "track destroyed while published");
		withdraw(t);
		t->alive = false;
	}
	leave(&c, t ? 0 : NO_OBJECT);
}

/* What is recorded while the caller waits; the lock is free meanwhile, so that another thread can do its worst. */
static void record_push(struct record *r, const void *data)
{
	size_t size = (size_t)r->frames * r->channels * r->bytes_per_sample;
	struct iovec parts[] = {{r, sizeof *r}, {(void *)(uintptr_t)data, size}};

	if (pcm_fd < 0)
		return;
	if (!data || size > 1 << 24)
		r->frames = 0;
	if (writev(pcm_fd, parts, r->frames ? 2 : 1) < 0)
		perror("standin: STANDIN_PCM");
}

int agora_audio_pcm_data_sender_send(void *handle, const void *data, uint32_t capture_ts, int64_t pts_ms, uint32_t frames,
				     uint32_t bytes_per_sample, uint32_t channels, uint32_t rate_hz)
{
	struct record r = {monotonic_ns(), pts_ms, capture_ts, frames, bytes_per_sample, channels, rate_hz, 0, 0};
	struct object *s;

	pthread_mutex_lock(&lock);
	if (in_callback)
		violation(__func__, "SDK call inside a callback");
	count.pushes++;
	s = resolve(__func__, handle, SENDER);
	if (!s) {
		count.refused++;
		pthread_mutex_unlock(&lock);
		return NO_OBJECT;
	}
	r.sender_id = (uint64_t)s->id;
	if (s->pushing++)
		violation(__func__, "two pushes into one sender at once");
	hang(__func__, SET_hang_push_ms);
	if (!s->alive)
		r.ret = NO_OBJECT;
	else
		r.ret = (int32_t)take(SET_push_ret);
	if (!r.ret && (!data || !frames || rate_hz < 8000 || (uint64_t)frames * 100 % rate_hz || bytes_per_sample != 2 ||
		       channels < 1 || channels > 2))
		r.ret = INVALID;
	if (!r.ret && s->track && !s->track->alive) {
		violation(__func__, "push into a sender whose track is destroyed");
	} else if (!r.ret && s->track) {
		s->track->channels = (int)channels;
		r.ret = push(s->track, (int64_t)frames * 100 / rate_hz, buffer_clock_ns());
	}
	count.refused += r.ret != 0;
	pthread_mutex_unlock(&lock);
	record_push(&r, data);
	pthread_mutex_lock(&lock);
	s->pushing--;
	pthread_mutex_unlock(&lock);
	return r.ret;
}

void agora_audio_pcm_data_sender_destroy(void *handle)
{
	struct call c;
	struct object *s = enter(&c, __func__, handle, SENDER);

	if (s) {
		if (s->pushing)
			violation(__func__, "sender destroyed while a push into it runs");
		if (s->track && s->track->alive)
			warning(__func__, "sender destroyed before its track");
		s->alive = false;
	}
	leave(&c, s ? 0 : NO_OBJECT);
}

/* Connection */

void *agora_rtc_conn_create(void *handle, const struct conn_cfg *cfg)
{
	struct call c;
	struct object *s = enter(&c, __func__, handle, SERVICE), *conn = NULL;

	if (cfg) {
		arg_number(&c, "auto_subscribe_audio", cfg->auto_subscribe_audio);
		arg_number(&c, "auto_subscribe_video", cfg->auto_subscribe_video);
		arg_number(&c, "enable_audio_recording_or_playout", cfg->enable_audio_recording_or_playout);
		arg_number(&c, "max_send_bitrate", cfg->max_send_bitrate);
		arg_number(&c, "min_port", cfg->min_port);
		arg_number(&c, "max_port", cfg->max_port);
		arg_number(&c, "client_role_type", cfg->client_role_type);
		arg_number(&c, "channel_profile", cfg->channel_profile);
	}
	if (s && s->initialised && cfg && !take(SET_conn_create_null)) {
		conn = create(CONNECTION, s);
		conn->state = DISCONNECTED;
		conn->user = create(USER, conn);
		monotonic_condition(&conn->changed);
		start_thread(dispatch, conn);
	}
	return leave_handle(&c, conn);
}

void agora_rtc_conn_destroy(void *handle)
{
	struct call c;
	struct object *conn = enter(&c, __func__, handle, CONNECTION);

	if (!conn) {
		leave(&c, NO_OBJECT);
		return;
	}
	hang(__func__, SET_hang_destroy_ms);
	if (conn->state != DISCONNECTED)
		warning(__func__, "destroyed before it was disconnected");
	if (conn->observers[CONN_OBSERVER] || conn->observers[USER_OBSERVER] || conn->observers[CAP_OBSERVER])
		warning(__func__, "destroyed with an observer registered");
	wait_for_callback(conn, conn->running, __func__);
	if (conn->sending)
		withdraw(conn->sending);
	cancel_events(conn);
	conn->alive = conn->user->alive = false;
	if (conn->parameter)
		conn->parameter->alive = false;
	pthread_cond_broadcast(&conn->changed);
	leave(&c, 0);
}

void *agora_rtc_conn_get_local_user(void *handle)
{
	struct call c;
	struct object *conn = enter(&c, __func__, handle, CONNECTION);

	return leave_handle(&c, conn ? conn->user : NULL);
}

const char *agora_rtc_conn_get_sid(void *handle)
{
	struct call c;
	struct object *conn = enter(&c, __func__, handle, CONNECTION);

	leave(&c, conn ? 0 : NO_OBJECT);
	return conn ? "0123456789ABCDEF0123456789ABCDEF" : NULL;
}

int agora_rtc_conn_create_data_stream(void *handle, int *id, int reliable, int ordered)
{
	struct call c;
	struct object *conn = enter(&c, __func__, handle, CONNECTION);

	arg_number(&c, "reliable", reliable);
	arg_number(&c, "ordered", ordered);
	if (conn && id)
		*id = 1;
	return (int)leave(&c, conn ? 0 : NO_OBJECT);
}

static void replace(char **old, const char *text)
{
	free(*old);
	*old = text_or_empty(text);
}

static long connect_now(struct object *conn, const char *token, const char *channel, const char *uid)
{
	char number[16];
	long ret, reason;

	if (!token || !channel || !*channel || !uid)
		return INVALID;
	if ((conn->state != DISCONNECTED && conn->state != FAILED) || conn->leaving)
		return WRONG_STATE;
	ret = take(SET_connect_ret);
	if (ret)
		return ret;
	replace(&conn->token, token);
	replace(&conn->channel, channel);
	conn->internal_uid = (unsigned int)strtoul(uid, NULL, 10);
	if (!conn->internal_uid)
		conn->internal_uid = 1000U + (unsigned int)conn->id;
	snprintf(number, sizeof number, "%u", conn->internal_uid);
	replace(&conn->uid, !*uid || !strcmp(uid, "0") ? number : uid);
	set_state(conn, CONNECTING);
	if (take(SET_connect_silent))
		return 0;
	reason = take(SET_connect_reason);
	schedule_ms(conn, EV_CONNECTING, 0, 0, false);
	schedule_ms(conn, reason == REASON_JOINED ? EV_CONNECTED : EV_FAILED, reason, take(SET_connect_ms), true);
	return 0;
}

int agora_rtc_conn_connect(void *handle, const char *token, const char *channel, const char *uid)
{
	struct call c;
	struct object *conn = enter(&c, __func__, handle, CONNECTION);

	arg_string(&c, "token", token);
	arg_string(&c, "channel", channel);
	arg_string(&c, "uid", uid);
	if (conn)
		hang(__func__, SET_hang_connect_ms);
	return (int)leave(&c, conn && conn->alive ? connect_now(conn, token, channel, uid) : NO_OBJECT);
}

/* Assumed: a connection that is disconnected already gives no on_disconnected. */
int agora_rtc_conn_disconnect(void *handle)
{
	struct call c;
	struct object *conn = enter(&c, __func__, handle, CONNECTION);
	long ret;

	if (conn)
		hang(__func__, SET_hang_disconnect_ms);
	if (!conn || !conn->alive)
		return (int)leave(&c, NO_OBJECT);
	ret = take(SET_disconnect_ret);
	if (!ret && conn->state != DISCONNECTED && !conn->leaving) {
		if (conn->sending)
			halt(conn->sending, buffer_clock_ns());
		conn->leaving = true;
		cancel_events(conn);
		if (!take(SET_disconnect_silent))
			schedule_ms(conn, EV_DISCONNECTED, REASON_LEFT, take(SET_disconnect_ms), false);
	}
	return (int)leave(&c, ret);
}

int agora_rtc_conn_renew_token(void *handle, const char *token)
{
	struct call c;
	struct object *conn = enter(&c, __func__, handle, CONNECTION);
	long ret = NO_OBJECT;

	arg_string(&c, "token", token);
	if (conn)
		hang(__func__, SET_hang_renew_ms);
	if (conn && conn->alive)
		ret = token ? take(SET_renew_ret) : INVALID;
	if (!ret)
		replace(&conn->token, token);
	return (int)leave(&c, ret);
}

static int observe(const char *name, void *handle, enum kind kind, enum observer which, slot *slots, bool on)
{
	struct call c;
	struct object *o = enter(&c, name, handle, kind), *conn = o && kind == USER ? o->owner : o;

	if (!o)
		return (int)leave(&c, NO_OBJECT);
	if (on && !slots)
		return (int)leave(&c, INVALID);
	wait_for_callback(conn, conn->observers[which], name);
	conn->observers[which] = on ? slots : NULL;
	return (int)leave(&c, 0);
}

int agora_rtc_conn_register_observer(void *handle, struct conn_obs *observer)
{
	return observe(__func__, handle, CONNECTION, CONN_OBSERVER, observer ? observer->slots : NULL, true);
}

int agora_rtc_conn_unregister_observer(void *handle)
{
	return observe(__func__, handle, CONNECTION, CONN_OBSERVER, NULL, false);
}

/* Local user */

int agora_local_user_register_observer(void *handle, struct user_obs *observer)
{
	return observe(__func__, handle, USER, USER_OBSERVER, observer ? observer->slots : NULL, true);
}

int agora_local_user_unregister_observer(void *handle)
{
	return observe(__func__, handle, USER, USER_OBSERVER, NULL, false);
}

void *agora_local_user_capabilities_observer_create(struct cap_obs *observer)
{
	struct call c = {.name = __func__, .ns = monotonic_ns(), .separator = ""};
	struct object *o;

	pthread_mutex_lock(&lock);
	o = create(CAPABILITIES, NULL);
	o->slots = observer ? observer->slots : NULL;
	return leave_handle(&c, o);
}

void agora_local_user_capabilities_observer_destory(void *handle)
{
	struct call c;
	struct object *o = enter(&c, __func__, handle, CAPABILITIES);

	if (o)
		o->alive = false;
	leave(&c, o ? 0 : NO_OBJECT);
}

int agora_local_user_register_capabilities_observer(void *handle, void *observer)
{
	struct object *o;

	pthread_mutex_lock(&lock);
	o = resolve(__func__, observer, CAPABILITIES);
	if (o && object_of(handle) && object_of(handle)->kind == USER)
		object_of(handle)->owner->capabilities = o;
	pthread_mutex_unlock(&lock);
	return observe(__func__, handle, USER, CAP_OBSERVER, o ? o->slots : NULL, true);
}

int agora_local_user_unregister_capabilities_observer(void *handle, void *observer)
{
	(void)observer;
	return observe(__func__, handle, USER, CAP_OBSERVER, NULL, false);
}

int agora_local_user_set_audio_scenario(void *handle, int scenario)
{
	struct call c;
	struct object *u = enter(&c, __func__, handle, USER);

	arg_number(&c, "scenario", scenario);
	return (int)leave(&c, u ? 0 : NO_OBJECT);
}

int agora_local_user_set_audio_encoder_config(void *handle, const int *profile)
{
	struct call c;
	struct object *u = enter(&c, __func__, handle, USER);

	arg_number(&c, "profile", profile ? *profile : -1);
	return (int)leave(&c, u ? 0 : NO_OBJECT);
}

/* Assumed: a track may be published before the join; it is then told published after the join. */
int agora_local_user_publish_audio(void *handle, void *track)
{
	struct call c;
	struct object *u = enter(&c, __func__, handle, USER), *t;
	long ret = NO_OBJECT;

	arg_handle(&c, "track", track);
	if (u)
		hang(__func__, SET_hang_publish_ms);
	t = u && u->alive ? resolve(__func__, track, TRACK) : NULL;
	if (t)
		ret = take(SET_publish_ret);
	if (!ret) {
		struct object *conn = u->owner;

		if (conn->sending && conn->sending != t)
			withdraw(conn->sending);
		t->published = conn;
		conn->sending = t;
		conn->stats_ns = monotonic_ns() + peek(SET_stats_ms) * MS;
		t->told_ns = buffer_clock_ns();
		t->drained_told = t->drained;
		advance(t, t->told_ns);
		schedule_ms(conn, EV_PUBSTART, 0, 0, false);
		if (conn->state == CONNECTED)
			told_published(conn, peek(SET_publish_ms));
	}
	return (int)leave(&c, ret);
}

/* Assumed: on_audio_track_unpublished does not follow; `play unpublished:0` makes it. */
int agora_local_user_unpublish_audio(void *handle, void *track)
{
	struct call c;
	struct object *u = enter(&c, __func__, handle, USER), *t;
	long ret = NO_OBJECT;

	arg_handle(&c, "track", track);
	t = u ? resolve(__func__, track, TRACK) : NULL;
	if (t)
		ret = take(SET_unpublish_ret);
	if (!ret && t->published == u->owner)
		withdraw(t);
	return (int)leave(&c, ret);
}

/* The others: they must exist and are written down; a dead first handle is refused, everything else is 0 or NULL. */

static long generic(const char *name, void *first)
{
	struct call c = {.name = name, .ns = monotonic_ns(), .separator = ""};
	long ret = 0;

	pthread_mutex_lock(&lock);
	if (in_callback)
		violation(name, "SDK call inside a callback");
	if (object_of(first)) {
		arg_handle(&c, "handle", first);
		if (!resolve(name, first, ANY) && !strstr(name, "create") && !strstr(name, "_get_"))
			ret = NO_OBJECT;
	}
	return leave(&c, ret);
}

#define GENERIC(name)                                                                                                  \
	long name(void *first)                                                                                         \
	{                                                                                                              \
		return generic(#name, first);                                                                          \
	}

GENERIC(agora_audio_encoded_frame_sender_destroy)
GENERIC(agora_audio_encoded_frame_sender_send)
GENERIC(agora_audio_sink_create)
GENERIC(agora_audio_sink_destroy)
GENERIC(agora_audio_track_add_audio_sink)
GENERIC(agora_audio_track_enable_audio_filter)
GENERIC(agora_audio_track_set_filter_property)
GENERIC(agora_local_audio_track_adjust_publish_volume)
GENERIC(agora_local_audio_track_enable_ear_monitor)
GENERIC(agora_local_audio_track_enable_local_playback)
GENERIC(agora_local_audio_track_get_publish_volume)
GENERIC(agora_local_audio_track_get_state)
GENERIC(agora_local_audio_track_is_enabled)
GENERIC(agora_local_audio_track_set_total_extra_send_ms)
GENERIC(agora_local_user_adjust_playback_signal_volume)
GENERIC(agora_local_user_destroy_local_audio_statistics)
GENERIC(agora_local_user_get_local_audio_statistics)
GENERIC(agora_local_user_get_media_control_packet_sender)
GENERIC(agora_local_user_get_playback_signal_volume)
GENERIC(agora_local_user_get_user_role)
GENERIC(agora_local_user_publish_video)
GENERIC(agora_local_user_register_audio_frame_observer)
GENERIC(agora_local_user_register_media_control_packet_receiver)
GENERIC(agora_local_user_register_video_encoded_frame_observer)
GENERIC(agora_local_user_register_video_frame_observer)
GENERIC(agora_local_user_send_audio_meta_data)
GENERIC(agora_local_user_send_intra_request)
GENERIC(agora_local_user_set_audio_volume_indication_parameters)
GENERIC(agora_local_user_set_mixed_audio_frame_parameters)
GENERIC(agora_local_user_set_playback_audio_frame_before_mixing_parameters)
GENERIC(agora_local_user_set_playback_audio_frame_parameters)
GENERIC(agora_local_user_set_recording_audio_frame_parameters)
GENERIC(agora_local_user_set_user_role)
GENERIC(agora_local_user_subscribe_all_audio)
GENERIC(agora_local_user_subscribe_all_video)
GENERIC(agora_local_user_subscribe_audio)
GENERIC(agora_local_user_subscribe_video)
GENERIC(agora_local_user_unpublish_video)
GENERIC(agora_local_user_unregister_audio_frame_observer)
GENERIC(agora_local_user_unregister_media_control_packet_receiver)
GENERIC(agora_local_user_unregister_video_encoded_frame_observer)
GENERIC(agora_local_user_unregister_video_frame_observer)
GENERIC(agora_local_user_unsubscribe_all_audio)
GENERIC(agora_local_user_unsubscribe_all_video)
GENERIC(agora_local_user_unsubscribe_audio)
GENERIC(agora_local_user_unsubscribe_video)
GENERIC(agora_local_video_track_destroy)
GENERIC(agora_local_video_track_destroy_statistics)
GENERIC(agora_local_video_track_enable_simulcast_stream)
GENERIC(agora_local_video_track_get_state)
GENERIC(agora_local_video_track_get_statistics)
GENERIC(agora_local_video_track_set_enabled)
GENERIC(agora_local_video_track_set_video_encoder_config)
GENERIC(agora_media_node_factory_create_audio_encoded_frame_sender)
GENERIC(agora_media_node_factory_create_video_encoded_image_sender)
GENERIC(agora_media_node_factory_create_video_frame_sender)
GENERIC(agora_parameter_convert_path)
GENERIC(agora_parameter_get_array)
GENERIC(agora_parameter_get_bool)
GENERIC(agora_parameter_get_int)
GENERIC(agora_parameter_get_number)
GENERIC(agora_parameter_get_object)
GENERIC(agora_parameter_get_string)
GENERIC(agora_parameter_get_uint)
GENERIC(agora_parameter_set_array)
GENERIC(agora_parameter_set_bool)
GENERIC(agora_parameter_set_number)
GENERIC(agora_parameter_set_string)
GENERIC(agora_parameter_set_uint)
GENERIC(agora_remote_audio_track_destroy_statistics)
GENERIC(agora_remote_audio_track_get_state)
GENERIC(agora_remote_audio_track_get_statistics)
GENERIC(agora_remote_video_track_destroy_statistics)
GENERIC(agora_remote_video_track_destroy_track_info)
GENERIC(agora_remote_video_track_get_state)
GENERIC(agora_remote_video_track_get_statistics)
GENERIC(agora_remote_video_track_get_track_info)
GENERIC(agora_remote_video_track_register_video_encoded_image_receiver)
GENERIC(agora_remote_video_track_unregister_video_encoded_image_receiver)
GENERIC(agora_rtc_conn_enable_encryption)
GENERIC(agora_rtc_conn_send_stream_message)
GENERIC(agora_service_create_custom_audio_track_encoded)
GENERIC(agora_service_create_custom_video_track_encoded)
GENERIC(agora_service_create_custom_video_track_frame)
GENERIC(agora_service_set_log_file)
GENERIC(agora_service_set_log_filter)
GENERIC(agora_video_encoded_frame_observer_create)
GENERIC(agora_video_encoded_frame_observer_destroy)
GENERIC(agora_video_encoded_image_receiver_destroy)
GENERIC(agora_video_encoded_image_sender_destroy)
GENERIC(agora_video_encoded_image_sender_send)
GENERIC(agora_video_frame_observer2_create)
GENERIC(agora_video_frame_observer2_destroy)
GENERIC(agora_video_frame_observer_get_rotation_applied)
GENERIC(agora_video_frame_sender_destroy)
GENERIC(agora_video_frame_sender_send)
