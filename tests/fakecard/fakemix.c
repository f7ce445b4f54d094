/* fakemix: the controls of a card, as an external control plug-in of libasound.
 *
 * Tests describe the elements in `struct control`, a file mapped by both sides; mixer.py mirrors it. libasound's simple
 * mixer makes controls of the elements by their names: "Mic Capture Volume" and "Mic Capture Switch" are its "Mic".
 */
#include <alsa/asoundlib.h>
#include <alsa/control_external.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CONTROL_BYTES 16384
#define ELEMENTS 16
#define ITEMS 4
#define NAME_BYTES 48

enum { VOLUME, SWITCH, ITEM };

struct element {
	char name[NAME_BYTES];
	int64_t index, type, channels;
	int64_t min, max;
	int64_t db_min, db_step; /* in 0.01 dB; a step of 0: it tells no dB */
	int64_t refusal;	 /* the errno of a write */
	int64_t value[2];
	int64_t items;
	char item[ITEMS][NAME_BYTES];
};

/* Only 8-byte members and texts, so that a load or store of a number is whole. */
struct control {
	int64_t count;
	int64_t open_errno;
	int64_t hangs; /* 1 = who opens it, 2 = who sets an element, for ever */
	int64_t opens, writes;
	struct element element[ELEMENTS];
};
_Static_assert(sizeof(struct control) <= CONTROL_BYTES, "the control file is four pages");

struct card {
	snd_ctl_ext_t ext;
	volatile struct control *ctl;
};

static struct element *element_of(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key)
{
	return (struct element *)&((struct card *)ext->private_data)->ctl->element[key];
}

static void hang(void)
{
	for (;;)
		pause();
}

static void fakemix_close(snd_ctl_ext_t *ext)
{
	struct card *card = ext->private_data;

	munmap((void *)card->ctl, CONTROL_BYTES);
	free(card);
}

static int fakemix_elem_count(snd_ctl_ext_t *ext)
{
	return ((struct card *)ext->private_data)->ctl->count;
}

static int fakemix_elem_list(snd_ctl_ext_t *ext, unsigned int offset, snd_ctl_elem_id_t *id)
{
	struct element *element = element_of(ext, offset);

	snd_ctl_elem_id_set_interface(id, SND_CTL_ELEM_IFACE_MIXER);
	snd_ctl_elem_id_set_name(id, element->name);
	snd_ctl_elem_id_set_index(id, element->index);
	return 0;
}

static snd_ctl_ext_key_t fakemix_find_elem(snd_ctl_ext_t *ext, const snd_ctl_elem_id_t *id)
{
	unsigned int numid = snd_ctl_elem_id_get_numid(id);

	if (numid > 0)
		return numid - 1;
	for (int at = 0; at < fakemix_elem_count(ext); at++)
		if (!strcmp(element_of(ext, at)->name, snd_ctl_elem_id_get_name(id)) &&
		    element_of(ext, at)->index == snd_ctl_elem_id_get_index(id))
			return at;
	return SND_CTL_EXT_KEY_NOT_FOUND;
}

static int fakemix_get_attribute(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key, int *type, unsigned int *access,
				 unsigned int *count)
{
	static const int types[] = {SND_CTL_ELEM_TYPE_INTEGER, SND_CTL_ELEM_TYPE_BOOLEAN, SND_CTL_ELEM_TYPE_ENUMERATED};
	struct element *element = element_of(ext, key);

	*type = types[element->type];
	*access = SND_CTL_EXT_ACCESS_READWRITE;
	if (element->db_step)
		*access |= SND_CTL_EXT_ACCESS_TLV_READ | SND_CTL_EXT_ACCESS_TLV_CALLBACK;
	*count = element->channels;
	return 0;
}

static int fakemix_get_integer_info(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key, long *min, long *max, long *step)
{
	*min = element_of(ext, key)->min;
	*max = element_of(ext, key)->max;
	*step = 1;
	return 0;
}

static int fakemix_get_enumerated_info(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key, unsigned int *items)
{
	*items = element_of(ext, key)->items;
	return 0;
}

static int fakemix_get_enumerated_name(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key, unsigned int item, char *name,
				       size_t bytes)
{
	if (item >= element_of(ext, key)->items)
		return -EINVAL;
	strncpy(name, element_of(ext, key)->item[item], bytes - 1);
	name[bytes - 1] = 0;
	return 0;
}

static int fakemix_read_integer(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key, long *value)
{
	for (int at = 0; at < element_of(ext, key)->channels; at++)
		value[at] = element_of(ext, key)->value[at];
	return 0;
}

static int fakemix_read_enumerated(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key, unsigned int *items)
{
	for (int at = 0; at < element_of(ext, key)->channels; at++)
		items[at] = element_of(ext, key)->value[at];
	return 0;
}

static int admit(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key)
{
	volatile struct control *ctl = ((struct card *)ext->private_data)->ctl;

	if (ctl->hangs == 2)
		hang();
	ctl->writes++;
	return -element_of(ext, key)->refusal;
}

static int fakemix_write_integer(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key, long *value)
{
	int err = admit(ext, key);

	for (int at = 0; !err && at < element_of(ext, key)->channels; at++)
		element_of(ext, key)->value[at] = value[at];
	return err;
}

static int fakemix_write_enumerated(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key, unsigned int *items)
{
	int err = admit(ext, key);

	for (int at = 0; !err && at < element_of(ext, key)->channels; at++)
		element_of(ext, key)->value[at] = items[at];
	return err;
}

static void fakemix_subscribe_events(snd_ctl_ext_t *ext, int subscribe)
{
	(void)ext;
	(void)subscribe;
}

static int fakemix_read_event(snd_ctl_ext_t *ext, snd_ctl_elem_id_t *id, unsigned int *mask)
{
	(void)ext;
	(void)id;
	(void)mask;
	return -EAGAIN;
}

static int fakemix_tlv(snd_ctl_ext_t *ext, snd_ctl_ext_key_t key, int operation, unsigned int numid, unsigned int *tlv,
		       unsigned int bytes)
{
	(void)numid;
	if (operation || bytes < 4 * sizeof *tlv)
		return -ENXIO;
	tlv[0] = SND_CTL_TLVT_DB_SCALE;
	tlv[1] = 2 * sizeof *tlv;
	tlv[2] = element_of(ext, key)->db_min;
	tlv[3] = element_of(ext, key)->db_step;
	return 0;
}

static const snd_ctl_ext_callback_t fakemix_callbacks = {
	.close = fakemix_close,
	.elem_count = fakemix_elem_count,
	.elem_list = fakemix_elem_list,
	.find_elem = fakemix_find_elem,
	.get_attribute = fakemix_get_attribute,
	.get_integer_info = fakemix_get_integer_info,
	.get_enumerated_info = fakemix_get_enumerated_info,
	.get_enumerated_name = fakemix_get_enumerated_name,
	.read_integer = fakemix_read_integer,
	.read_enumerated = fakemix_read_enumerated,
	.write_integer = fakemix_write_integer,
	.write_enumerated = fakemix_write_enumerated,
	.subscribe_events = fakemix_subscribe_events,
	.read_event = fakemix_read_event,
};

SND_CTL_PLUGIN_DEFINE_FUNC(fakemix)
{
	snd_config_iterator_t i, next;
	const char *path = NULL;
	struct card *card;
	int fd, err;

	(void)root;
	snd_config_for_each(i, next, conf) {
		snd_config_t *entry = snd_config_iterator_entry(i);
		const char *id;

		if (snd_config_get_id(entry, &id) >= 0 && !strcmp(id, "ctl"))
			snd_config_get_string(entry, &path);
	}
	fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	if (fd < 0)
		return -ENODEV;
	card = calloc(1, sizeof *card);
	if (!card)
		return -ENOMEM;
	card->ctl = mmap(NULL, CONTROL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	err = card->ctl == MAP_FAILED ? -errno : -card->ctl->open_errno;
	if (err < 0) {
		free(card);
		return err;
	}
	card->ctl->opens++;
	if (card->ctl->hangs == 1)
		hang();
	card->ext.version = SND_CTL_EXT_VERSION;
	card->ext.card_idx = 0;
	strcpy(card->ext.id, "fakemix");
	strcpy(card->ext.driver, "fakemix");
	strcpy(card->ext.name, "fakemix");
	strcpy(card->ext.longname, "fakemix");
	strcpy(card->ext.mixername, "fakemix");
	card->ext.poll_fd = -1;
	card->ext.callback = &fakemix_callbacks;
	card->ext.tlv.c = fakemix_tlv;
	card->ext.private_data = card;
	err = snd_ctl_ext_create(&card->ext, name, mode);
	if (err < 0) {
		free(card);
		return err;
	}
	*handlep = card->ext.handle;
	return 0;
}

SND_CTL_PLUGIN_SYMBOL(fakemix);
