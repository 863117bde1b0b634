/* A PKCS#11 module that passes every call on to another (SHIM_MODULE) and misbehaves as a file says (SHIM_CONTROL):
 *
 *   final-try | locked | full | one-session
 *                                      C_GetTokenInfo says so (full: of every slot that its token is initialised); with
 *                                      one-session, C_OpenSession keeps to it
 *   login CODE | login crash           C_Login answers CODE for every error, or crashes after the token has answered
 *   silent CODE                        the same, and C_GetTokenInfo never shows what a wrong PIN has spent
 *   context CODE                       C_Login for one use of a key answers CODE
 *   keypad                             C_GetTokenInfo shows a keypad, at which a wrong PIN is typed
 *   no-pin                             C_InitPIN fails
 *   stuck                              a new key can't be read back (C_GetAttributeValue), nor removed (C_DestroyObject)
 *   fail CODE                          C_Sign answers CODE (hexadecimal), and ends the operation as it must
 *   flip                               C_Sign flips a bit of the signature
 *   hang | crash                       C_Sign does
 *   slow MILLISECONDS                  C_Sign takes so much longer (a hexadecimal number)
 *   wait                               C_Sign makes the file SHIM_CONTROL.waiting and goes on when it is told otherwise
 *
 * Each C_Login adds a byte to the file SHIM_CONTROL.logins.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong_t;
/* CK_FUNCTION_LIST: a version and 68 functions (PKCS#11 2.40, pkcs11f.h); by number, those that are replaced. */
struct list { unsigned char major, minor; void *function[68]; };
enum { GET_FUNCTION_LIST = 3, GET_TOKEN_INFO = 6, INIT_PIN = 10, OPEN_SESSION = 12, CLOSE_SESSION = 13, LOGIN = 18,
       DESTROY_OBJECT = 22, GET_ATTRIBUTE_VALUE = 24, SIGN = 43 };
/* CK_TOKEN_INFO as far as it is changed. */
struct token_info { char names[32 + 32 + 16 + 16]; ulong_t flags, max_sessions; };

static struct list real, shim;
static int sessions;

static int told(const char *word, ulong_t *code) {
    char line[64] = "";
    const char *path = getenv("SHIM_CONTROL");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return 0;
    char *read = fgets(line, sizeof line, file);
    fclose(file);
    if (!read || strncmp(line, word, strlen(word)) != 0) return 0;
    if (code) *code = strtoul(line + strlen(word), NULL, 16);
    return 1;
}

static ulong_t get_token_info(ulong_t slot, struct token_info *info) {
    ulong_t rv = ((ulong_t (*)(ulong_t, struct token_info *))real.function[GET_TOKEN_INFO])(slot, info);
    if (told("final-try", NULL)) info->flags |= 0x20000;
    if (told("locked", NULL)) info->flags |= 0x40000;
    if (told("keypad", NULL)) info->flags |= 0x100;
    if (told("full", NULL)) info->flags |= 0x400;
    if (told("one-session", NULL)) info->max_sessions = 1;
    if (told("silent", NULL)) {
        info->flags &= ~0x70000UL;
        memset(info->names + 32, 'x', 32);
    }
    return rv;
}

static ulong_t init_pin(ulong_t session, char *pin, ulong_t length) {
    if (told("no-pin", NULL)) return 0x30; /* CKR_DEVICE_ERROR */
    return ((ulong_t (*)(ulong_t, char *, ulong_t))real.function[INIT_PIN])(session, pin, length);
}

static ulong_t open_session(ulong_t slot, ulong_t flags, void *a, void *b, ulong_t *session) {
    if (told("one-session", NULL) && sessions > 0) return 0xb1; /* CKR_SESSION_COUNT */
    sessions++;
    return ((ulong_t (*)(ulong_t, ulong_t, void *, void *, ulong_t *))real.function[OPEN_SESSION])(slot, flags, a, b, session);
}

static ulong_t close_session(ulong_t session) {
    sessions--;
    return ((ulong_t (*)(ulong_t))real.function[CLOSE_SESSION])(session);
}

static ulong_t login(ulong_t session, ulong_t user, char *pin, ulong_t length) {
    ulong_t code;
    char path[4096];
    snprintf(path, sizeof path, "%s.logins", getenv("SHIM_CONTROL"));
    FILE *file = fopen(path, "a");
    if (file && fputc('x', file) == 'x') fclose(file);
    if (user == 2 && told("context", &code)) {
        usleep(50000);
        return code;
    }
    if (!pin && told("keypad", NULL)) return 0xa0; /* CKR_PIN_INCORRECT */
    ulong_t rv = ((ulong_t (*)(ulong_t, ulong_t, char *, ulong_t))real.function[LOGIN])(session, user, pin, length);
    if (told("login crash", NULL)) abort();
    if (rv != 0 && (told("login", &code) || told("silent", &code))) return code;
    return rv;
}

static ulong_t destroy_object(ulong_t session, ulong_t object) {
    if (told("stuck", NULL)) return 0x30; /* CKR_DEVICE_ERROR */
    return ((ulong_t (*)(ulong_t, ulong_t))real.function[DESTROY_OBJECT])(session, object);
}

static ulong_t get_attribute_value(ulong_t session, ulong_t object, void *attributes, ulong_t count) {
    if (told("stuck", NULL)) return 0x30; /* CKR_DEVICE_ERROR */
    return ((ulong_t (*)(ulong_t, ulong_t, void *, ulong_t))real.function[GET_ATTRIBUTE_VALUE])(
        session, object, attributes, count);
}

static ulong_t sign(ulong_t session, char *data, ulong_t length, char *signature, ulong_t *signature_length) {
    ulong_t code;
    while (told("hang", NULL)) pause();
    while (told("wait", NULL)) {
        char path[4096];
        snprintf(path, sizeof path, "%s.waiting", getenv("SHIM_CONTROL"));
        FILE *file = fopen(path, "w");
        if (file) fclose(file);
        usleep(2000);
    }
    if (told("crash", NULL)) abort();
    if (told("slow", &code)) usleep(code * 1000);
    ulong_t rv = ((ulong_t (*)(ulong_t, char *, ulong_t, char *, ulong_t *))real.function[SIGN])(
        session, data, length, signature, signature_length);
    if (told("fail", &code)) return code;
    if (rv == 0 && signature && told("flip", NULL)) signature[7] ^= 1;
    return rv;
}

ulong_t C_GetFunctionList(struct list **list) {
    if (!real.major) {
        void *module = dlopen(getenv("SHIM_MODULE"), RTLD_NOW);
        ulong_t (*get)(struct list **) = module ? dlsym(module, "C_GetFunctionList") : NULL;
        struct list *theirs;
        if (!get || get(&theirs) != 0) return 0x5; /* CKR_GENERAL_ERROR */
        real = shim = *theirs;
        shim.function[GET_FUNCTION_LIST] = C_GetFunctionList;
        shim.function[GET_TOKEN_INFO] = get_token_info;
        shim.function[INIT_PIN] = init_pin;
        shim.function[OPEN_SESSION] = open_session;
        shim.function[CLOSE_SESSION] = close_session;
        shim.function[LOGIN] = login;
        shim.function[DESTROY_OBJECT] = destroy_object;
        shim.function[GET_ATTRIBUTE_VALUE] = get_attribute_value;
        shim.function[SIGN] = sign;
    }
    *list = &shim;
    return 0;
}
