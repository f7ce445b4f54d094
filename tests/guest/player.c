/* Plays a frame counter: S16_LE stereo whose 32-bit frame index, from 1, lies in channel 0 (low half) and 1 (high half).
 *
 *   player [PCM [RATE_HZ [AHEAD_S]]]          default: hw:Loopback,0,0 48000 2
 *
 * Keeps AHEAD_S seconds in the PCM's buffer, so that a hiccup of the machine does not tear the signal; an underrun of
 * its own is told on stderr at once. Prints "playing" when the buffer is full and the stream has started, and at
 * SIGTERM or SIGINT "FRAMES frames, UNDERRUNS underruns". Exit code 3 if there were any.
 */
#define _GNU_SOURCE
#include <alsa/asoundlib.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static volatile sig_atomic_t stopping;

static void stop(int signal_number)
{
    (void)signal_number;
    stopping = 1;
}

static void need(int error, const char *what)
{
    if (error < 0) {
        fprintf(stderr, "player: %s: %s\n", what, snd_strerror(error));
        exit(1);
    }
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "hw:Loopback,0,0";
    unsigned rate_hz = argc > 2 ? (unsigned)atoi(argv[2]) : 48000;
    double ahead_s = argc > 3 ? atof(argv[3]) : 2.0;

    struct sigaction action = {.sa_handler = stop}; /* without SA_RESTART: a wait ends at once */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    snd_pcm_t *pcm;
    snd_pcm_hw_params_t *hardware;
    snd_pcm_sw_params_t *software;
    snd_pcm_uframes_t buffer = (snd_pcm_uframes_t)(ahead_s * rate_hz), period = rate_hz / 10;
    snd_pcm_hw_params_alloca(&hardware);
    snd_pcm_sw_params_alloca(&software);
    need(snd_pcm_open(&pcm, name, SND_PCM_STREAM_PLAYBACK, 0), name);
    need(snd_pcm_hw_params_any(pcm, hardware), "hw_params_any");
    need(snd_pcm_hw_params_set_access(pcm, hardware, SND_PCM_ACCESS_RW_INTERLEAVED), "access");
    need(snd_pcm_hw_params_set_format(pcm, hardware, SND_PCM_FORMAT_S16_LE), "S16_LE");
    need(snd_pcm_hw_params_set_channels(pcm, hardware, 2), "2 channels");
    need(snd_pcm_hw_params_set_rate(pcm, hardware, rate_hz, 0), "rate");
    need(snd_pcm_hw_params_set_period_size_near(pcm, hardware, &period, NULL), "period");
    need(snd_pcm_hw_params_set_buffer_size_near(pcm, hardware, &buffer), "buffer");
    need(snd_pcm_hw_params(pcm, hardware), "hw_params");
    need(snd_pcm_sw_params_current(pcm, software), "sw_params_current");
    need(snd_pcm_sw_params_set_start_threshold(pcm, software, buffer), "start_threshold");
    need(snd_pcm_sw_params(pcm, software), "sw_params");

    int16_t *frames = malloc(period * 2 * sizeof *frames);
    struct sched_param priority = {.sched_priority = 60};
    if (sched_setscheduler(0, SCHED_FIFO, &priority) || mlockall(MCL_CURRENT | MCL_FUTURE))
        perror("player: goes on without real time");

    uint32_t next = 1, underruns = 0;
    snd_pcm_uframes_t left = 0;
    int told = 0;
    while (!stopping) {
        if (left == 0) {
            for (left = 0; left < period; left++, next++) {
                frames[2 * left] = (int16_t)(next & 0xffff);
                frames[2 * left + 1] = (int16_t)(next >> 16);
            }
        }
        snd_pcm_sframes_t written = snd_pcm_writei(pcm, frames + 2 * (period - left), left);
        if (written == -EINTR || written == -EAGAIN)
            continue;
        if (written == -EPIPE) {
            underruns++;
            fprintf(stderr, "player: underrun before frame %u\n", next - (uint32_t)left);
            written = snd_pcm_prepare(pcm);
            need((int)written, "prepare");
            continue;
        }
        need((int)written, "write"); /* ENODEV: the card was taken away */
        left -= (snd_pcm_uframes_t)written;
        if (!told && snd_pcm_state(pcm) == SND_PCM_STATE_RUNNING) {
            told = 1;
            printf("playing %u Hz, buffer %lu, period %lu\n", rate_hz, buffer, period);
            fflush(stdout);
        }
    }
    snd_pcm_drop(pcm);
    snd_pcm_close(pcm);
    printf("%u frames, %u underruns\n", next - 1 - (uint32_t)left, underruns);
    return underruns ? 3 : 0;
}
