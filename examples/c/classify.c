/* Deployed in C: onnxruntime's C library alone. ./classify MODEL.onnx images.f32 labels.u8 */

#include <onnxruntime_c_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { PIXELS = 64, CLASSES = 10 };

static const OrtApi *ort;

static void check(OrtStatus *status) {
    if (status == NULL) return;
    fprintf(stderr, "onnxruntime: %s\n", ort->GetErrorMessage(status));
    exit(1);
}

/* The whole file, and its length in bytes. */
static void *read_file(const char *name, size_t *bytes) {
    FILE *file = fopen(name, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        perror(name);
        exit(1);
    }
    *bytes = (size_t)ftell(file);
    rewind(file);
    void *content = malloc(*bytes);
    if (content == NULL || fread(content, 1, *bytes, file) != *bytes) {
        perror(name);
        exit(1);
    }
    fclose(file);
    return content;
}

int main(int count, char **arguments) {
    if (count != 4) {
        fprintf(stderr, "usage: %s MODEL.onnx images.f32 labels.u8\n", arguments[0]);
        return 2;
    }
    size_t image_bytes, digits;
    float *images = read_file(arguments[2], &image_bytes);
    uint8_t *labels = read_file(arguments[3], &digits);
    if (image_bytes != digits * PIXELS * sizeof(float)) {
        fprintf(stderr, "%s and %s hold unlike numbers of digits\n", arguments[2], arguments[3]);
        return 1;
    }

    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (ort == NULL) {
        fprintf(stderr, "this onnxruntime (%s) is older than its header\n", OrtGetApiBase()->GetVersionString());
        return 1;
    }
    OrtEnv *env;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtMemoryInfo *memory;
    OrtValue *input, *output = NULL;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "classify", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->CreateSession(env, arguments[1], options, &session));
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));

    /* All digits in one batch: the batch size is free. The tensor is a view of ``images``. */
    const int64_t shape[] = {(int64_t)digits, 1, 8, 8};
    const char *inputs[] = {"x"}, *outputs[] = {"output"};
    float *logits;
    check(ort->CreateTensorWithDataAsOrtValue(memory, images, image_bytes, shape, 4,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
    check(ort->Run(session, NULL, inputs, (const OrtValue *const *)&input, 1, outputs, 1, &output));
    check(ort->GetTensorMutableData(output, (void **)&logits));

    size_t right = 0;
    for (size_t digit = 0; digit < digits; digit++) {
        const float *row = logits + digit * CLASSES;
        int best = 0;
        for (int class = 1; class < CLASSES; class++)
            if (row[class] > row[best]) best = class;
        right += best == labels[digit];
    }
    printf("%zu of %zu test digits right\n", right, digits);

    ort->ReleaseValue(output);
    ort->ReleaseValue(input);
    ort->ReleaseMemoryInfo(memory);
    ort->ReleaseSession(session);
    ort->ReleaseSessionOptions(options);
    ort->ReleaseEnv(env);
    free(images);
    free(labels);
    return 0;
}
