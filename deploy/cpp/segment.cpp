// SPDX-License-Identifier: Apache-2.0
// Segments a picture with a network that `export.py --input uint8` wrote.
//
//   segment MODEL PICTURE MASK
//
// MODEL: model.pdmodel or model.onnx. PICTURE: a binary PPM (P6), 8 bits. MASK: a binary PGM (P5),
// the class of each pixel. Exit status: 0, or 2 with what is wrong on the standard error output.

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <limits>
#include <openvino/openvino.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Picture {
    size_t width, height;
    std::vector<uint8_t> rgb;  // height x width x 3
};

size_t read_number(std::istream& file, const std::string& path) {
    while ((file >> std::ws).peek() == '#')
        file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    size_t value = 0;
    if (!(file >> value) || value == 0 || value > 65535)
        throw std::runtime_error(path + ": its header has no number from 1 to 65535.");
    return value;
}

Picture read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic(2, '\0');
    if (!file.read(&magic[0], 2) || magic != "P6")
        throw std::runtime_error(path + ": is no binary PPM (P6) that can be read.");
    Picture picture;
    picture.width = read_number(file, path);
    picture.height = read_number(file, path);
    if (read_number(file, path) != 255)
        throw std::runtime_error(path + ": has not 8 bits a value.");
    file.get();  // one white space
    picture.rgb.resize(picture.width * picture.height * 3);
    if (!file.read(reinterpret_cast<char*>(picture.rgb.data()), picture.rgb.size()))
        throw std::runtime_error(path + ": ends too early.");
    return picture;
}

std::vector<uint8_t> labels_of(const std::string& model_path, Picture& picture) {
    // Below, maps inside a network may become empty.
    if (std::min(picture.width, picture.height) < 32)
        throw std::runtime_error("OpenVINO takes pictures of 32 pixels or more on each side.");
    ov::Core core;
    auto model = core.read_model(model_path);
    if (model->input().get_element_type() != ov::element::u8)
        throw std::runtime_error(model_path + ": does not take uint8; export with --input uint8.");
    if (model->output(0).get_element_type() != ov::element::i32)
        throw std::runtime_error(model_path + ": does not give labels; export with --output_op argmax.");
    // Left to itself OpenVINO computes in bfloat16 where the processor has it.
    auto precision = ov::hint::inference_precision(ov::element::f32);
    auto network = core.compile_model(model, "CPU", precision);
    auto request = network.create_infer_request();
    request.set_input_tensor(
        ov::Tensor(ov::element::u8, {1, picture.height, picture.width, 3}, picture.rgb.data()));
    request.infer();
    auto output = request.get_output_tensor(0);
    if (output.get_size() != picture.width * picture.height)
        throw std::runtime_error(model_path + ": gives a mask of another size than the picture's.");
    return {output.data<int32_t>(), output.data<int32_t>() + output.get_size()};
}

}  // namespace

int main(int count, char** arguments) {
    try {
        if (count != 4) throw std::runtime_error("usage: segment MODEL PICTURE.ppm MASK.pgm");
        auto picture = read_ppm(arguments[2]);
        auto labels = labels_of(arguments[1], picture);
        std::ofstream file(arguments[3], std::ios::binary);
        file << "P5\n" << picture.width << " " << picture.height << "\n255\n";
        file.write(reinterpret_cast<const char*>(labels.data()), labels.size());
        if (!file.flush())
            throw std::runtime_error(std::string(arguments[3]) + ": cannot be written.");
    } catch (const std::exception& error) {
        std::cerr << error.what() << "\n";
        return 2;
    }
}
